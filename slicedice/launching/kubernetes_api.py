"""The API server of Kubernetes, through its official client, which is imported only when it is asked for something."""

import json
import os
from collections.abc import Callable
from typing import Any

from slicedice.launching.protocol import LaunchError

REQUEST_SECONDS = 60


class NotDoneError(LaunchError):
    """What was asked of the API server was not done: it said so, or there was no connection to ask by."""


def connect(context: str = "") -> Any:
    """The client's module, and an `ApiClient` of the cluster that the kubeconfig names.

    Args:
      context: of the kubeconfig; empty: the current one.

    Raises:
      LaunchError: the client is not installed, or there is no kubeconfig that can be used.
    """
    try:
        from kubernetes import client, config  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise LaunchError(
            "This launcher needs the package kubernetes: pip install 'slicedice[kubernetes]'. What --dry_run prints "
            "can also be given to kubectl."
        ) from error
    try:
        # The variable is read here, since the client reads it only when it is imported.
        return client, config.new_client_from_config(os.environ.get("KUBECONFIG"), context or None)
    except (config.ConfigException, OSError) as error:
        raise LaunchError(
            f"There is no kubeconfig that can be used ({error}). `kubectl config get-contexts` lists what there is; "
            "`gcloud container clusters get-credentials CLUSTER` adds a cluster of GKE."
        ) from error


def ask(call: Callable[..., Any], *arguments: Any, may_lack: bool = False, if_taken: str = "", **options: Any) -> Any:
    """Calls a method of the client.

    Args:
      call: the method. arguments, options: its own.
      may_lack: return None where what is asked for is not there.
      if_taken: what to say where something has the name already.

    Raises:
      NotDoneError: the API server refused, or cannot be reached.
      LaunchError: it failed, or its answer was lost; what was asked of it may have been done.
    """
    from kubernetes.client import ApiException  # pyright: ignore[reportMissingImports]
    from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, SSLError

    try:
        return call(*arguments, _request_timeout=REQUEST_SECONDS, **options)
    except ApiException as error:
        if error.status == 404 and may_lack:
            return None
        more = f". {if_taken}" if if_taken and error.status == 409 else ""
        if 400 <= (error.status or 0) < 500:
            raise NotDoneError(f"Kubernetes refused, with status {error.status}: {_reason(error)}{more}") from error
        raise LaunchError(f"Kubernetes failed, with status {error.status}: {_reason(error)}") from error
    except HTTPError as error:
        unsent = isinstance(getattr(error, "reason", None), ConnectTimeoutError | NewConnectionError | SSLError)
        raise (NotDoneError if unsent else LaunchError)(
            f"The API server of Kubernetes cannot be reached: {error}"
        ) from error


def _reason(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"])
    except (KeyError, TypeError, ValueError):
        return str(error.body or error.reason).strip()
