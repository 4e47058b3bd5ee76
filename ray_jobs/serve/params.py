"""Limits of the endpoint."""

from pydantic import BaseModel, ConfigDict, Field


class ServingParams(BaseModel):
    """What a request may ask for, and how many are served at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_body_bytes: int = Field(8_000_000, ge=1_000)
    max_image_pixels: int = Field(20_000_000, ge=1_000)
    max_new_tokens: int = Field(128, ge=1)
    max_images: int = Field(4, ge=1, description="images in one request, and images drawn by one")
    max_draw_size: int = Field(64, ge=16, description="longest side of a drawn image in px")
    timeout_s: float = Field(60, gt=0)
    replicas: int = Field(1, ge=1)
    threads_per_replica: int = Field(1, ge=1)
    max_ongoing_requests: int = Field(16, ge=1)
    max_queued_requests: int = Field(200, ge=1)
