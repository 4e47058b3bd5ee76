"""How much is evaluated, and how."""

from pydantic import BaseModel, ConfigDict, Field


class EvaluationParams(BaseModel):
    """Budgets of the evaluation; items are chosen by a fixed, even rule, so two models see the same ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_questions: int = Field(600, ge=1, description="questions a source")
    max_drawings: int = Field(48, ge=0, description="text-to-image prompts")
    max_pairs: int = Field(24, ge=0, description="image-to-image pairs a kind")
    batch: int = Field(32, ge=1)
    max_new_tokens: int = Field(12, ge=1)
    reference_rows: int = Field(240, ge=20, description="images of the reference window")
    min_slice: int = Field(20, ge=1, description="smallest slice reported")
    probe_min_images: int = Field(12, ge=2, description="training images a modality needs to be judged by the probe")
