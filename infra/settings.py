"""Where things are: endpoints, credentials, buckets and addresses, from the environment and `.env`.

`unimed up` writes what it started to `<state_dir>/stack.env`; the environment wins over both files.
"""

import os
from functools import cache
from pathlib import Path

from pydantic import SecretStr, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import DotEnvSettingsSource

from infra.proxies import past_proxies

REPO = Path(__file__).resolve().parent.parent

# No part of the stack phones home or waits for a network that may not be there.
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GX_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_OFFLINE": "1",
    # At its default of 2 s, each checkpoint report may stall training for as long.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A job that is told to stop gets so long to save what it has; Ray's default is 3 s.
    "RAY_JOB_STOP_WAIT_TIME_S": "120",
}


class Settings(BaseSettings):
    """Addresses and credentials; never what to do (that is `params.yaml`)."""

    # An empty variable is one that a script did not fill in; as a folder it would be the current one.
    model_config = SettingsConfigDict(env_prefix="UNIMED_", env_file=".env", env_ignore_empty=True, extra="ignore")

    state_dir: Path = REPO / ".unimed"
    repo_dir: Path = REPO
    params_file: Path = REPO / "params.yaml"
    s3_endpoint: str = "http://127.0.0.1:8333"
    s3_access_key: str = ""
    s3_secret_key: SecretStr = SecretStr("")
    s3_region: str = "us-east-1"
    bucket_corpus: str = "unimed-corpus"
    bucket_models: str = "unimed-models"
    bucket_logs: str = "unimed-logs"
    prefect_api_url: str = "http://127.0.0.1:4200/api"
    ray_address: str = "127.0.0.1:6379"
    ray_dashboard_url: str = "http://127.0.0.1:8265"
    ray_auth_mode: str = "token"
    serve_url: str = "http://127.0.0.1:8000"
    api_key: SecretStr = SecretStr("")
    patient_salt: SecretStr = SecretStr("")

    @classmethod
    def settings_customise_sources(cls, settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings) -> tuple[PydanticBaseSettingsSource, ...]:
        # The state folder is needed before the settings are, as it holds some of them.
        named = (source.env_vars.get("unimed_state_dir") for source in (env_settings, dotenv_settings))
        folder = Path(next(filter(None, named), REPO / ".unimed"))
        stack = DotEnvSettingsSource(settings_cls, env_file=folder / "stack.env")
        return init_settings, env_settings, dotenv_settings, stack

    @field_validator("state_dir")
    @classmethod
    def _absolute(cls, folder: Path) -> Path:
        return folder.absolute()

    @property
    def buckets(self) -> tuple[str, ...]:
        return self.bucket_corpus, self.bucket_models, self.bucket_logs

    @property
    def prefect_ui_url(self) -> str:
        return self.prefect_api_url.removesuffix("/api")

    def process_environment(self) -> dict[str, str]:
        """The environment of a child process: addresses, credentials, no proxy on the way to them, and quiet libraries."""
        secret = {name: value.get_secret_value() for name, value in self if isinstance(value, SecretStr)}
        plain = {name: str(value) for name, value in self if not isinstance(value, SecretStr)}
        own = {f"UNIMED_{name.upper()}": value for name, value in (plain | secret).items()}
        others = {
            "AWS_ACCESS_KEY_ID": self.s3_access_key,
            "AWS_SECRET_ACCESS_KEY": secret["s3_secret_key"],
            "AWS_DEFAULT_REGION": self.s3_region,
            "AWS_ENDPOINT_URL": self.s3_endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
            "PREFECT_API_URL": self.prefect_api_url,
            "PREFECT_HOME": str(self.state_dir / "prefect"),
            "RAY_AUTH_MODE": self.ray_auth_mode,
            "RAY_AUTH_TOKEN_PATH": str(self.state_dir / "ray_token"),
        }
        return own | others | past_proxies() | QUIET

    def export(self) -> None:
        """Put `process_environment` into this process, for libraries that read nothing else."""
        os.environ.update(self.process_environment())


class SettingsError(ValueError):
    """Settings that cannot be read; the message tells how to mend them."""


@cache
def get_settings() -> Settings:
    """The settings of this process; `get_settings.cache_clear()` reads them anew.

    Raises:
        SettingsError: a file of them is damaged.
    """
    try:
        return Settings()
    except UnicodeDecodeError:
        raise SettingsError("the settings in ./.env or in stack.env of the state folder are no UTF-8 text: write them anew as such. Of stack.env keep the patients' key (UNIMED_PATIENT_SALT), which nothing can bring back") from None
