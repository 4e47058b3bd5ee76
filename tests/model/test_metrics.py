"""Scores against values worked out by hand."""

import numpy as np
import pytest

from model.answer_metrics import closed_match, exact_match, option_match, token_f1, token_recall, wilson_interval
from model.image_metrics import clip_score, frechet_distance, frechet_image_distance, psnr, ssim
from model.report_metrics import bleu, meteor, rouge


@pytest.mark.parametrize("answer, truth, same", [("Yes.", "yes", True), ("the left lung", "Left lung", True), ("CT", "MRI", False), ("X-ray", "x-ray", True), ("2", "2.", True), ("0.5", "05", False)])
def test_exact_match_ignores_case_articles_and_punctuation(answer, truth, same):
    assert exact_match(answer, truth) is same


@pytest.mark.parametrize(
    "answer, truth, same",
    [
        ("", "A", False),
        ("the", "A", False),
        ("", "?", False),
        ("A.", "A", True),
        ("?", "?", True),
        (".5 cm", "5 cm", False),
        ("about...5 cm", "about 5 cm", True),
        ("fig.5", "fig 5", True),
        ("T2 weighted", "T2-weighted", True),
        ("x-ray of left-sided effusion", "X ray of left sided effusion", True),
        ("grade 2-3", "grade 2–3", True),
        ("upper_lobe", "upper lobe", True),
        ("-5 degrees", "5 degrees", False),
        ("-.5", ".5", False),
        ("\u22125 HU", "-5 HU", True),
        ("Ｙｅｓ", "yes", True),
        ("1,000 cells", "1000 cells", True),
        ("2,3", "23", False),
        ("Two lobes", "2 lobes", True),
        ("e\u0301panchement", "\u00e9panchement", True),
    ],
)
def test_normalising_leaves_no_answer_blank_and_no_number_another(answer, truth, same):
    assert exact_match(answer, truth) is same
    assert (token_f1(answer, truth) == 1) is (token_recall(answer, truth) == 1) is same


def test_token_f1():
    assert token_f1("left lung nodule", "left lung") == pytest.approx(0.8)
    assert token_f1("", "left") == 0.0
    assert token_f1("", "") == token_f1("A", "A") == 1


def test_open_questions_are_scored_by_recall():
    assert token_recall("a nodule in the left upper lung", "Left lung.") == 1
    assert token_recall("left", "left lung") == 0.5 and token_recall("", "left") == token_recall("left", "") == 0


@pytest.mark.parametrize("answer, truth, right", [("Yes, it is.", "yes", True), ("No: yes would be wrong", "yes", False), ("There is no effusion", "no", True), ("nodule", "no", False), ("", "no", False)])
def test_closed_questions_are_scored_by_the_first_choice_named(answer, truth, right):
    assert closed_match(answer, truth) is right


def test_closed_questions_with_choices_of_their_own():
    choices = ("lung", "left lung", "axial")
    assert closed_match("The left lung, axial view", "Left lung", choices) and not closed_match("axial view of the lung", "lung", choices)


@pytest.mark.parametrize("answer, right", [("A is right", True), ("The answer is A.", True), ("a", True), ("", False), ("It is a tumour: B", False)])
def test_a_choice_that_is_also_an_article(answer, right):
    assert closed_match(answer, "A", ("A", "B")) is right


def test_psnr_of_a_known_error():
    assert psnr(np.full((4, 4), 10, np.uint8), np.zeros((4, 4), np.uint8)) == pytest.approx(20 * np.log10(255 / 10))


def test_no_picture_is_nearer_than_an_equal_one():
    picture = np.zeros((512, 512, 3), np.uint8)
    near = picture.copy()
    near[0, 0, 0] = 1
    assert psnr(near, picture) == psnr(picture, picture) == 100


@pytest.mark.parametrize("score", [psnr, ssim])
def test_pixels_of_another_range_are_refused(score):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    for picture, truth in (pixels / 255.0, (pixels[0] / 255.0, pixels[1]), (pixels[0], pixels[1] > 127)):
        with pytest.raises(ValueError, match="uint8, got"):
            score(picture, truth)


@pytest.mark.parametrize("score", [psnr, ssim])
@pytest.mark.parametrize("shapes", [((64, 64, 1), (64, 64, 3)), ((10, 10, 3), (10, 11, 3)), ((10, 10), (10, 10, 3)), ((0, 0, 3), (0, 0, 3))])
def test_pictures_of_unlike_shapes_are_told(score, shapes):
    with pytest.raises(ValueError, match=r"one shape.*got \(") as told:
        score(*(np.zeros(shape, np.uint8) for shape in shapes))
    assert all(str(shape) in str(told.value) for shape in shapes)


def test_wilson_interval_of_a_known_case():
    low, high = wilson_interval(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)


OPTIONS = {"A": "left lung", "B": "right lung", "C": "heart"}


@pytest.mark.parametrize(
    "answer, letter",
    [
        ("B", "B"),
        ("(B).", "B"),
        ("The finding is in option C", "C"),
        ("The answer is A, because B is healthy", "A"),
        ("I see an opacity of the right lung.", "B"),
        ("left lung or right lung", None),
        ("I cannot tell.", None),
        ("right lung " * 20, None),
        ("The answer is a right lung.", "B"),
        ("The answer is (a), the lung on the other side is healthy", "A"),
        ("The answer is c, both lungs are quite healthy", "C"),
        ("I think the answer is b", "B"),
        ("Sorry, I can't help with images of people yet. A", None),
        ("（B）", "B"),
    ],
)
def test_option_match(answer, letter):
    assert option_match(answer, OPTIONS) == letter


def test_an_option_whose_text_is_an_article_is_not_in_every_answer():
    assert option_match("O", {"A": "A", "B": "B", "C": "AB", "D": "O"}) == "D"


def test_ssim_of_equal_and_of_unlike_pictures():
    picture = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    assert ssim(picture, picture) == pytest.approx(1.0) and ssim(picture, 255 - picture) < 0.1


def test_ssim_of_grey_pictures_is_that_of_their_rgb():
    grey, other = np.random.default_rng(0).integers(0, 255, (2, 32, 24), dtype=np.uint8)
    assert ssim(grey, other) == pytest.approx(ssim(*(np.stack([p] * 3, axis=-1) for p in (grey, other))))
    with pytest.raises(ValueError, match="7 px"):
        ssim(grey[:6], other[:6])


def test_frechet_distance_of_known_gaussians():
    """Same covariance: the squared distance of the means. Same mean, twice the deviation: the trace of the difference."""
    draws = np.random.default_rng(0).normal(size=(20_000, 3))
    assert frechet_distance(draws, draws) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(draws, draws + [3, 0, 0]) == pytest.approx(9, rel=1e-6)
    assert frechet_distance(draws, 2 * draws) == pytest.approx(3, rel=0.05)
    assert frechet_distance(draws[:5], draws[:5]) >= 0
    for features in (draws[:1], draws[0]):
        with pytest.raises(ValueError, match="two or more"):
            frechet_distance(features, draws)
    assert frechet_distance([[0], [1]], [[2], [3]]) == pytest.approx(4)
    holed = draws.copy()
    holed[[3, 7], 1] = np.nan, np.inf
    for sets, which in (((holed, draws), "first"), ((draws, holed), "second")):
        with pytest.raises(ValueError, match=f"^2 of the {len(draws)} vectors of the {which} set hold NaN or infinity"):
            frechet_distance(*sets)


def test_scores_are_those_of_other_packages():
    from nltk.translate.bleu_score import sentence_bleu
    from scipy.linalg import sqrtm
    from skimage.metrics import peak_signal_noise_ratio

    rng = np.random.default_rng(1)
    picture, truth = rng.integers(0, 255, (2, 40, 30, 3), dtype=np.uint8)
    assert psnr(picture, truth) == pytest.approx(peak_signal_noise_ratio(truth, picture, data_range=255))
    a, b = rng.normal(size=(60, 8)) @ rng.normal(size=(8, 8)), rng.normal(size=(50, 8)) + 1
    means, covariances = (a.mean(0), b.mean(0)), (np.cov(a.T), np.cov(b.T))
    wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    assert frechet_distance(a, b) == pytest.approx(wanted)
    report, reference = "no acute fracture of the left rib is seen today", "no acute fracture of the right rib is seen"
    assert bleu([report], [reference]) == pytest.approx(sentence_bleu([reference.split()], report.split()))


def test_ssim_is_the_published_formula():
    """Wang et al. 2004 with a 7 by 7 box, worked out window by window."""
    from numpy.lib.stride_tricks import sliding_window_view

    x, y = np.random.default_rng(2).integers(0, 255, (2, 16, 12, 3), dtype=np.uint8)
    a, b = (sliding_window_view(p.astype(float), (7, 7), axis=(0, 1)).reshape(10, 6, 3, 49) for p in (x, y))
    covariance = ((a - a.mean(-1, keepdims=True)) * (b - b.mean(-1, keepdims=True))).sum(-1) / 48
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    wanted = (2 * a.mean(-1) * b.mean(-1) + c1) * (2 * covariance + c2) / ((a.mean(-1) ** 2 + b.mean(-1) ** 2 + c1) * (a.var(-1, ddof=1) + b.var(-1, ddof=1) + c2))
    assert ssim(x, y) == pytest.approx(wanted.mean())


def test_pictures_are_compared_in_any_encoders_space():
    from PIL import Image

    grey = [Image.new("L", (8, 8), level) for level in (10, 60, 110)]
    bright = [Image.new("L", (8, 8), level) for level in (30, 80, 130)]

    def encoder(pictures):
        return np.array([[np.asarray(p).mean(), 1.0] for p in pictures])

    assert frechet_image_distance(grey, bright, encoder) == pytest.approx(400)
    words = {"dark": [0.0, 1.0], "light": [1.0, 0.0]}
    score = clip_score(grey[:1] * 2, ["light", "dark"], encoder, lambda texts: np.array([words[t] for t in texts]))
    assert score == pytest.approx((10 + 1) / 2 / np.hypot(10, 1))
    with pytest.raises(ValueError, match="3 pictures and 1 texts"):
        clip_score(grey, ["dark"], encoder, lambda texts: np.array([words[t] for t in texts]))


@pytest.mark.parametrize("seen, read", [((1, 4), (2, 4)), ((2, 1), (2, 4)), ((1, 4), (1, 4)), ((2,), (2,))])
def test_an_encoder_that_gives_not_one_vector_each_is_told(seen, read):
    with pytest.raises(ValueError, match=r"2 pictures and texts, but the encoders gave \(") as told:
        clip_score([None, None], ["dark", "light"], lambda pictures: np.ones(seen), lambda texts: np.ones(read))
    assert f"{seen} and {read}" in str(told.value)


def test_reports_against_values_worked_out_by_hand():
    report, truth = ["the heart is normal"], ["the heart is enlarged"]
    assert bleu(report, truth, n=1) == pytest.approx(3 / 4)
    assert bleu(report, truth, n=2) == pytest.approx((3 / 4 * 2 / 3) ** 0.5)
    assert rouge(report, truth) == pytest.approx({"rouge1": 0.75, "rouge2": 2 / 3, "rougeL": 0.75})
    # Three matches in one chunk: F = 0.75, penalty 0.5 * (1 / 3) ** 3.
    assert meteor(report, truth) == pytest.approx(0.75 * (1 - 0.5 / 27))
    assert bleu(truth, truth) == pytest.approx(1) and rouge(truth, truth)["rougeL"] == 1
    for score in (bleu, rouge, meteor):
        with pytest.raises(ValueError, match="of no reports is not defined"):
            score([], [])


def test_reports_in_any_script():
    assert rouge(["пневмония"], ["пневмония"])["rouge1"] == 1
    assert rouge(["pâle"], ["pèle"])["rouge1"] == 0
    assert rouge(["e\u0301panchement"], ["\u00e9panchement"])["rouge1"] == 1


def test_rouge_of_english_is_the_packages():
    from rouge_score.rouge_scorer import RougeScorer

    report, truth = "No effusions; T2_FLAIR wasn't repeated (5.5 mm).", "Effusion repeats in T2 FLAIR, 5.5mm. It wasn't big"
    wanted = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score(truth, report)
    assert rouge([report], [truth]) == {kind: score.fmeasure for kind, score in wanted.items()}
