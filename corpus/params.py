"""The `corpus` section of params.yaml. The defaults are the `tiny` profile."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from corpus import vocabulary
from corpus.vocabulary import LICENSES, MODALITIES, UNIMED_MODALITIES


def _modality(name: str) -> str:
    """A check that names no modality there is would silently look at nothing."""
    if known := vocabulary.modality(name):
        return known
    raise ValueError(f"no modality; these are {', '.join(MODALITIES)}")


Modality = Annotated[str, AfterValidator(_modality)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PhantomParams(_Section):
    """How much of UniMed-mini is made. Patients are spread over the splits in proportion."""

    seed: int = 7
    image_size: int = Field(96, ge=48, le=512, description="side in pixels")
    patients_per_modality: int = Field(30, ge=3)
    images_per_patient: int = Field(2, ge=1)
    val_share: float = Field(0.15, gt=0, lt=0.5)
    test_share: float = Field(0.15, gt=0, lt=0.5)


class BurnedInParams(_Section):
    """Where text burned into the picture is looked for, as it may name the patient."""

    modalities: tuple[Modality, ...] = Field(("Ultrasound", "Endoscopy"), description="pictures of these are looked at")
    secondary_captures: bool = Field(True, description="and DICOM secondary captures and screen saves of any modality")
    letters: float = Field(4, ge=3, description="letters in a row from which a picture is kept aside")


class ModalityParams(_Section):
    """When a picture looks like another modality than its label names. Margins go from 0, no preference, to about 1."""

    disagrees: float = Field(0.6, gt=0, description="margin of the other modality from which a picture is kept aside")
    doubted: float = Field(0.4, gt=0, description="and from which a person should look at it")
    min_pictures: int = Field(20, ge=2, description="of a kind; fewer are not enough to know it")
    recognised: float = Field(0.3, gt=0, le=1, description="share of a kind's pictures that must look like it; else it is not known")
    confused: float = Field(0.05, ge=0, le=1, description="share of a kind's pictures that may look like another; if more do, the other is not judged by it")
    max_share: float = Field(0.2, gt=0, le=1, description="of a source's pictures; where more disagree, a person decides")

    @model_validator(mode="after")
    def _margins_in_order(self):
        if self.doubted > self.disagrees:
            raise ValueError(f"doubted={self.doubted} exceeds disagrees={self.disagrees}: nobody would be asked")
        return self


class AlignmentParams(_Section):
    """Which sources' captions are scored against their pictures, and how many are kept."""

    scorer: str = Field("words", description="words: no network; champion: the model that serves; or the folder of a CLIP-type model")
    keep_share: dict[str, float] = Field({}, description="best share of a source's training pairs, by source; * for all others. 1 measures only")

    def share(self, source: str) -> float | None:
        """The share of a source that is kept, None if it is not scored."""
        return self.keep_share.get(source, self.keep_share.get("*"))

    @field_validator("keep_share")
    @classmethod
    def _shares(cls, value: dict[str, float]) -> dict[str, float]:
        if wrong := [name for name, share in value.items() if not 0 < share <= 1]:
            raise ValueError(f"a share is above 0 and at most 1: {', '.join(wrong)}")
        return value


class QualityParams(_Section):
    """What a record must satisfy to be kept."""

    min_side: int = Field(32, ge=1, description="pixels; smaller pictures go to quarantine")
    max_side: int = Field(512, ge=64, description="pixels; larger pictures are scaled down, so that no stage sees more of them")
    max_pixels: int = Field(50_000_000, ge=1, description="larger files are refused before decoding")
    window_percentiles: tuple[float, float] = Field((0.5, 99.5), description="16-bit to 8-bit window, the darker one first")
    max_aspect: float = Field(6, ge=1, description="longer side over shorter side")
    min_entropy: float = Field(0.1, ge=0, lt=8, description="bits of the grey levels; a blank picture has none")
    min_bright: int = Field(8, ge=0, le=255, description="grey level that a pixel in a thousand must have; a near-black picture is darker")
    min_caption: int = Field(1, ge=1, description="characters of a caption")
    max_text: int = Field(1024, ge=16, description="characters of a caption, question or answer")
    near_distance: int = Field(4, ge=0, le=16, description="bits in which pHash and dHash of look-alikes differ at most; at 6, two people's hands are one")
    languages: tuple[Annotated[str, Field(pattern="^[a-z]{2,3}$")], ...] = Field(("en",), min_length=1, description="codes, as en or zh")
    licenses: tuple[str, ...] = Field(LICENSES, min_length=1)
    burned_in: BurnedInParams = BurnedInParams()
    modality: ModalityParams = ModalityParams()
    alignment: AlignmentParams = AlignmentParams()
    same_caption: int = Field(10_000, ge=1, description="pictures of a source with one caption; of more a person is told")

    @field_validator("window_percentiles")
    @classmethod
    def _window_opens(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] < value[1] <= 100:
            raise ValueError("a lower and a higher percentile, from 0 to 100")
        return value

    @model_validator(mode="after")
    def _limits_in_order(self):
        for low, high in (("min_side", "max_side"), ("min_caption", "max_text")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}={getattr(self, low)} exceeds {high}={getattr(self, high)}")
        return self


class ShardParams(_Section):
    """Sizes of the Parquet files."""

    target_bytes: int = Field(64 * 2**20, ge=2**16)
    row_group: int = Field(64, ge=1, description="rows; the unit of random access")


class ExpectationParams(_Section):
    """What a release as a whole must satisfy."""

    enforced: Literal["all", "safety"] = Field("all", description="whether all must hold, or licences and splits of patients alone, as in a release that forgets a patient")
    modalities: tuple[Modality, ...] = Field(UNIMED_MODALITIES, description="each must be present")
    min_per_modality: int = Field(20, ge=1, description="samples")
    min_per_split: int = Field(20, ge=1, description="samples")
    max_shift: float = Field(0.2, gt=0, le=1, description="how far a task's, modality's or split's share of a source may move from one release to the next")
    balance_from: int = Field(100, ge=1, description="samples a source needs in both releases for its shares to be compared")


class CorpusParams(_Section):
    """Everything that decides what a corpus release holds."""

    phantoms: PhantomParams = PhantomParams()
    quality: QualityParams = QualityParams()
    shards: ShardParams = ShardParams()
    expectations: ExpectationParams = ExpectationParams()
