"""The plan's arithmetic against what the network really has, saves and computes."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.config import PUBLISHED_EXTRAS, ModelConfig
from model.curriculum import StageParams, TrainingParams
from model.packing import TextItem, pack
from model.plan import Hardware, activation_bytes, count_parameters, layer_bytes, layer_parameters, plan, state_bytes, training_flops
from model.unimedvl import UniMedVL
from tests.model.test_checkpoint import LLM_14B, VIT_14B

STAGE = StageParams(name="unified", steps=70000, mixture={"text": 1}, learning_rate=1e-5, tokens_per_pack=18000)

SHARDED = TrainingParams(workers=8, streams=8, parallel="fsdp", precision="bfloat16", activation_checkpointing=True)


@pytest.fixture(scope="module")
def published() -> ModelConfig:
    return ModelConfig(llm=LLM_14B, vit=VIT_14B, **PUBLISHED_EXTRAS)


@pytest.fixture(scope="module")
def tiny() -> UniMedVL:
    model = UniMedVL(ModelConfig()).train()
    model.initialise(torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def batch(tiny):
    generator = torch.Generator().manual_seed(1)
    return pack([[TextItem(torch.randint(4, 500, (62,), generator=generator).tolist(), loss=True)] for _ in range(4)], tiny.config)


def test_the_14b_is_counted_on_the_real_network(published):
    counts = count_parameters(published)
    assert sum(counts.values()) - counts["vae"] == 14_607_260_128
    assert counts["generation"] == pytest.approx(6.526e9, rel=0.01) and counts["vit"] == pytest.approx(0.403e9, rel=0.1)


def test_layer_parameters_are_those_of_a_layer(tiny):
    assert layer_parameters(tiny.config) == sum(p.numel() for p in tiny.language_model.model.layers[0].parameters())


def test_state_is_what_a_training_step_holds(tiny, batch):
    from model.curriculum import PARTS
    from model.losses import count, step_loss
    from model.optimisation import EMA, make_optimiser, set_trainable

    parameters = set_trainable(tiny, PARTS)
    optimiser, average = make_optimiser(parameters, STAGE), EMA(parameters, 0.995)
    step_loss(tiny(batch, torch.zeros(0, tiny.config.latent_dim)), count(batch), 0.25, 1.0)[0].backward()
    for parameter in parameters.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    counts = count_parameters(tiny.config)
    expected = state_bytes(counts, sum(counts[part] for part in PARTS), shards=1)
    moments = sum(t.nbytes for state in optimiser.state.values() for t in state.values() if t.dim())
    assert expected["optimiser"] == moments
    assert expected["gradients"] == sum(p.grad.nbytes for p in parameters.values())
    assert expected["EMA"] == sum(t.nbytes for t in average.average.values())
    assert expected["VAE"] == sum(p.nbytes for p in tiny.vae.parameters())
    assert expected["weights"] + expected["VAE"] == sum(p.nbytes for p in tiny.parameters())
    tiny.zero_grad()


def saved_bytes(model: UniMedVL, batch) -> int:
    """Bytes of the distinct storages that autograd keeps through a forward pass, weights left out."""
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = model(batch, torch.zeros(0, model.config.latent_dim))
    assert losses.ce.requires_grad
    return sum(size for size, _ in kept.values())


def test_activations_are_what_the_plan_says(tiny, batch):
    """Two forward passes that differ by nothing but checkpointing."""
    decoder, layers = tiny.language_model.model, tiny.config.llm.num_hidden_layers
    whole = saved_bytes(tiny, batch)
    decoder.checkpointing = True
    checkpointed = saved_bytes(tiny, batch)
    decoder.checkpointing = False
    inputs = batch.length * tiny.config.llm.hidden_size * 4
    assert whole - checkpointed == pytest.approx(layers * (batch.length * layer_bytes(tiny.config, width=4) - inputs), rel=0.05)
    # All tokens of this batch carry a loss, half of them in the plan; no layer is computed again in a forward.
    planned = activation_bytes(tiny.config, batch.length, width=4) - batch.length * layer_bytes(tiny.config, width=4)
    assert checkpointed == pytest.approx(planned, rel=0.25)
    assert whole == pytest.approx(activation_bytes(tiny.config, batch.length, width=4, checkpointed=False), rel=0.25)


def test_flops_are_those_that_run(tiny, batch):
    noise = torch.zeros(0, tiny.config.latent_dim)
    # The counter knows the plain product only.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        losses = tiny(batch, noise)
        losses.ce.sum().backward()
    tiny.zero_grad()
    llm = tiny.config.llm
    # The published count has both embedding tables as products: the input table is a look-up.
    planned = training_flops(tiny.config, batch.length, batch.sample_lens) - 6 * llm.vocab_size * llm.hidden_size * batch.length
    assert counter.get_total_flops() == pytest.approx(planned, rel=0.05)


def test_more_gpus_hold_less_each_and_the_14b_needs_several(published):
    plans = {gpus: plan(published, STAGE, SHARDED, Hardware(gpus)) for gpus in (8, 16, 32)}
    totals = [plans[gpus].total_memory for gpus in plans]
    assert totals == sorted(totals, reverse=True)
    assert not plan(published, STAGE, SHARDED, Hardware(2)).fits and plans[32].fits
    assert plans[8].step_seconds == pytest.approx(plans[32].step_seconds)


def test_a_plan_follows_how_the_profile_trains(tiny):
    def of(gpus=2, **training):
        return plan(tiny.config, STAGE, TrainingParams(workers=1, **training), Hardware(gpus))

    whole, sharded = of(), of(parallel="fsdp")
    assert [whole.memory[key] for key in ("weights", "optimiser")] == [2 * sharded.memory[key] for key in ("weights", "optimiser")]
    assert whole.memory["weights in use"] == 0 < sharded.memory["weights in use"]
    assert of(precision="bfloat16").memory["weights in use"] == whole.memory["weights"] // 2
    assert of(precision="bfloat16").memory["activations"] < whole.memory["activations"]
    assert of(activation_checkpointing=True).memory["activations"] < whole.memory["activations"]
    assert whole.how == "whole on every GPU, float32, activations kept"
    # Eight packs a step: four for each of two GPUs, three of which the busiest of three has, and one at least.
    assert [of(gpus, streams=8).tokens_per_gpu // STAGE.tokens_per_pack for gpus in (2, 3, 8, 16)] == [4, 3, 1, 1]
    assert of(streams=8).step_seconds == pytest.approx(4 * of(streams=2).step_seconds)
