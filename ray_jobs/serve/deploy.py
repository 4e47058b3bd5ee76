"""Switch the endpoint to a model version without dropping a request.

Ray Serve's declarative API is told three times: old and new side by side; the router on the new one; the
old one gone. Serve lets an application finish what it is answering before it goes.
"""

import time
from collections.abc import Callable
from urllib.parse import urlsplit

from infra.settings import get_settings
from ray_jobs.serve.params import ServingParams

ROUTER_APP = "router"


class DeployFailed(RuntimeError):
    """A version did not come up; whatever served before still does."""


def deploy(version: str, params: ServingParams, on_step: Callable[[str], None] = print, timeout_s: float = 120) -> dict:
    """Make `version` answer all traffic; returns {version, url, how}.

    Raises:
        DeployFailed: the new application did not become healthy. The old one keeps serving.
    """
    url = get_settings().serve_url
    now = status()
    if now["serving"] == [version] and now["healthy"]:
        return {"version": version, "url": url, "how": "up to date"}
    old = [v for v in now["serving"] if v != version]
    try:
        _apply(params, versions=[*old, version], arms=old or [version])
        _wait([_model_app(version), ROUTER_APP], timeout_s, on_step)
    except DeployFailed:
        if old:
            _apply(params, versions=old, arms=old)
        raise
    if old:
        _apply(params, versions=[*old, version], arms=[version])
        _wait([ROUTER_APP], timeout_s, on_step)
        _apply(params, versions=[version], arms=[version])
    _await_route(version, timeout_s)
    on_step(f"{url} serves {version}")
    return {"version": version, "url": url, "how": "deployed"}


def status() -> dict:
    """{"serving": versions with traffic, "healthy": all of them and the router run, "apps": {name: status}}."""
    details = _client().get_serve_details()
    apps = details.get("applications", {})
    states = {name: app["status"] for name, app in apps.items()}
    router = apps.get(ROUTER_APP, {}).get("deployed_app_config") or {}
    arms = next((d["user_config"]["arms"] for d in router.get("deployments", []) if d.get("user_config")), [])
    serving = [arm["version"] for arm in arms]
    wanted = [ROUTER_APP, *map(_model_app, serving)]
    return {"serving": serving, "healthy": bool(serving) and all(states.get(name) == "RUNNING" for name in wanted), "apps": states}


def _client():
    settings = get_settings()
    settings.export()
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    return ServeSubmissionClient(settings.ray_dashboard_url)


def _model_app(version: str) -> str:
    return f"model-{version}"


def _apply(params: ServingParams, versions: list[str], arms: list[str]) -> None:
    serving = params.model_dump(mode="json")
    models = [
        {"name": _model_app(v), "route_prefix": None, "import_path": "ray_jobs.serve.replica:build", "args": {"version": v, "serving": serving}}
        for v in versions
    ]
    traffic = {"arms": [{"arm": "champion", "version": v, "weight": 1.0} for v in arms]}
    router = {
        "name": ROUTER_APP,
        "route_prefix": "/",
        "import_path": "ray_jobs.serve.router:build",
        "args": {"serving": serving},
        "deployments": [{"name": "Router", "user_config": traffic}],
    }
    address = urlsplit(get_settings().serve_url)
    http = {"host": address.hostname, "port": address.port, "request_timeout_s": params.timeout_s + 5}
    _client().deploy_applications({"proxy_location": "HeadOnly", "http_options": http, "applications": [*models, router]})


def _wait(apps: list[str], timeout_s: float, on_step: Callable[[str], None]) -> None:
    """Until all the applications run."""
    end, shown = time.monotonic() + timeout_s, {}
    while time.monotonic() < end:
        found = _client().get_serve_details().get("applications", {})
        states = {name: found.get(name, {}).get("status", "NOT_STARTED") for name in apps}
        for name, state in states.items():
            if shown.get(name) != state:
                on_step(f"{name}: {state.lower()}")
        shown = states
        failed = [name for name, state in states.items() if state in ("DEPLOY_FAILED", "UNHEALTHY")]
        if failed:
            raise DeployFailed(f"{failed[0]} did not start: {found[failed[0]].get('message', '')[-1500:]}")
        if all(state == "RUNNING" for state in states.values()):
            return
        time.sleep(0.25)
    raise DeployFailed(f"after {timeout_s:.0f} s: {shown}")


def _await_route(version: str, timeout_s: float) -> None:
    """Until the router itself says that it sends traffic to the version."""
    import httpx

    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            arms = httpx.get(f"{get_settings().serve_url}/health", timeout=5).json().get("arms", [])
            if [arm["version"] for arm in arms] == [version]:
                return
        except (httpx.HTTPError, ValueError):
            pass
        time.sleep(0.2)
    raise DeployFailed(f"the router does not answer for {version} after {timeout_s:.0f} s")
