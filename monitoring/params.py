"""Thresholds of drift detection."""

from pydantic import BaseModel, ConfigDict, Field


class DriftParams(BaseModel):
    """When a window of requests counts as drifted from the model's reference window."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    window_hours: float = Field(24, gt=0)
    min_rows: int = Field(40, ge=10, description="requests with an image; fewer are not enough evidence")
    max_rows: int = Field(200, ge=10, description="fixed sample size: large windows would flag everything")
    components: int = Field(6, ge=1, description="leading principal components of the image embedding")
    alpha: float = Field(0.01, gt=0, lt=0.5, description="significance of a column's test, shared out over the columns (Bonferroni)")
    min_effect: float = Field(0.35, gt=0, description="normed Wasserstein (numbers) or Jensen-Shannon (labels) distance a column must reach as well")
    min_share: float = Field(0.25, gt=0, le=1, description="share of embedding components that confirms a drift of the inputs")
    cooldown_minutes: float = Field(60, ge=0, description="least time between two retrainings started by drift")
