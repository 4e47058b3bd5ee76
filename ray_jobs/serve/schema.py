"""The part of OpenAI's request schema the endpoint understands, and how it becomes model input."""

import base64
import io
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ray_jobs.serve.errors import ApiError
from ray_jobs.serve.params import ServingParams

Parts = list[str | bytes]
MODEL_ALIAS = "unimedvl"
# Below it the most likely token is all but certain, and far below it the scaled logits are no longer numbers.
LEAST_TEMPERATURE = 1e-4
# Sides of drawn pictures are multiples of what one latent token covers.
LATENT_PX = 16
# Torch's generators take no more; drawings count up from it.
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class _Request(BaseModel):
    # Clients send many fields that change nothing here (user, metadata …): they are accepted.
    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class ImageUrl(_Request):
    url: str


class ContentPart(_Request):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class Message(_Request):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ContentPart]


class StreamOptions(_Request):
    include_usage: bool = False


class ResponseFormat(_Request):
    type: Literal["text"] = "text"


class ChatRequest(_Request):
    """`POST /v1/chat/completions`. Of what would change an answer and is not done here, the fields know only the harmless values."""

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float = Field(0.0, ge=0, le=2)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: Seed = 0
    stop: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field([], max_length=4)
    n: Literal[1] = 1
    tool_choice: Literal["none", "auto"] = "auto"
    response_format: ResponseFormat = ResponseFormat()
    logprobs: Literal[False] = False
    user: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @field_validator("temperature")
    @classmethod
    def _greedy_if_tiny(cls, temperature: float) -> float:
        return temperature if temperature >= LEAST_TEMPERATURE else 0.0

    def parts(self, limits: ServingParams) -> Parts:
        """Texts and encoded images of all messages, in order; the network has no role template."""
        parts: Parts = []
        for message in self.messages:
            content = [ContentPart(type="text", text=message.content)] if isinstance(message.content, str) else message.content
            parts += [_part(piece, limits) for piece in content]
        if sum(isinstance(part, bytes) for part in parts) > limits.max_images:
            raise ApiError(400, f"at most {limits.max_images} images a request", "too_many_images", "messages")
        return parts

    def token_limit(self, limits: ServingParams) -> int:
        return min(self.max_completion_tokens or self.max_tokens or limits.max_new_tokens, limits.max_new_tokens)


class ImageRequest(_Request):
    """`POST /v1/images/generations`."""

    model: str = MODEL_ALIAS
    prompt: str = Field(min_length=1, max_length=1024)
    n: int = Field(1, ge=1)
    size: str = Field("auto", max_length=16)
    response_format: Literal["b64_json"] = "b64_json"
    seed: Seed = 0
    user: str | None = None

    def pixels(self, limits: ServingParams) -> tuple[int, int] | None:
        """(width, height), or None for the model's own size."""
        if self.size == "auto":
            return None
        sides, allowed = self.size.split("x"), range(LATENT_PX, limits.max_draw_size + 1, LATENT_PX)
        if not (len(sides) == 2 and all(side.isdecimal() and int(side) in allowed for side in sides)):
            raise ApiError(400, f"size must be 'auto' or WIDTHxHEIGHT with sides of {LATENT_PX} to {limits.max_draw_size} px, multiples of {LATENT_PX}", "invalid_size", "size")
        width, height = map(int, sides)
        return width, height


def parse(model: type[BaseModel], payload: bytes) -> Any:
    """Validate a JSON body; the first problem becomes OpenAI's error with its parameter."""
    try:
        return model.model_validate_json(payload)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(piece) for piece in problem["loc"]) or None
        raise ApiError(400, f"{param or 'body'}: {problem['msg']}", "invalid_value" if param else "invalid_json", param) from None


def _part(piece: ContentPart, limits: ServingParams) -> str | bytes:
    if piece.type == "text":
        if piece.text is None:
            raise ApiError(400, "a text part needs `text`", "invalid_value", "messages")
        return piece.text
    if piece.image_url is None:
        raise ApiError(400, "an image_url part needs `image_url.url`", "invalid_value", "messages")
    return checked_image(_data_url(piece.image_url.url), limits)


def _data_url(url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64") and comma):
        # The endpoint never fetches: a request cannot make it reach into the network.
        raise ApiError(400, "images must be data: URLs with base64 content; the endpoint does not fetch links", "invalid_image_url", "messages")
    try:
        return base64.b64decode(data, validate=True)
    except ValueError:
        raise ApiError(400, "the image is not valid base64", "invalid_image", "messages") from None


def checked_image(data: bytes, limits: ServingParams) -> bytes:
    """The same bytes, once they are known to decode within the limits.

    Raises:
        ApiError: 400 for anything but a whole PNG, JPEG, WebP, BMP, TIFF or GIF of acceptable size.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"))
        if image.width * image.height > limits.max_image_pixels:
            raise ApiError(400, f"the image has more than {limits.max_image_pixels:,} pixels", "image_too_large", "messages")
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ApiError(400, "the image cannot be decoded: send a whole PNG, JPEG, WebP, BMP, TIFF or GIF", "invalid_image", "messages") from None
    return data
