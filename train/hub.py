"""`--push-to-hub`: the finished folder as a repository on the Hugging Face hub.

    prepare     before training: login, repository, right to write; a mistake costs no hours
    push        afterwards: all files but checkpoints, logs and hidden ones; links as the files they lead to

The token is given to huggingface_hub and to nobody else: no record, message or log has it. `HF_ENDPOINT`
names another hub.
"""

import glob
import re
import shlex
from typing import TYPE_CHECKING

from data_tools.errors import DataFault, UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from train.options import TrainOptions

IGNORED = ["checkpoint-*", ".*", "*/.*", "wandb/*"]
"Not uploaded; a star of the hub's stands for slashes too."


def prepare(options: "TrainOptions", accelerator: "Accelerator") -> str | None:
    """The repository to push to, `user/name`, made if it was not there; None without `--push-to-hub`.

    All ranks call it, the first one asks the hub. Raises `UserError`, the same on all of them, for no login,
    no connection, no right to write.
    """
    if not options.push_to_hub:
        return None
    from accelerate.utils import broadcast_object_list

    answer: list[str | None] = [None, None]  # repository, mistake
    if accelerator.is_main_process:
        try:
            answer[0] = _repository(options)
        except UserError as err:
            answer[1] = str(err)
    repository, mistake = broadcast_object_list(answer)
    if mistake is not None:
        raise UserError(mistake)
    return repository


def _repository(options: "TrainOptions") -> str:
    """See `prepare`."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError

    token = _token(options)
    api = HfApi(token=token)
    if not token:
        raise UserError(
            f"--push-to-hub: no login at {api.endpoint} was found; wanted `hf auth login`, HF_TOKEN or "
            "--hub-token"
        )
    if not re.fullmatch(r"[!-~]+", token):  # before an error of the HTTP client quotes it
        raise UserError("--hub-token: holds spaces or other characters that no token has")
    name = options.hub_model_id or options.output_dir.resolve().name
    try:
        user = api.whoami()["name"]
        repository = name if "/" in name else f"{user}/{name}"
        repository = str(api.create_repo(repository, exist_ok=True).repo_id)
        # create_repo is content with a repository of somebody else's; the answer to this is 403 there
        api.preupload_lfs_files(repository, additions=[CommitOperationAdd("README.md", b"a question")])
    except HFValidationError:
        raise UserError(
            f"--hub-model-id: {name} cannot be a repository's name; wanted [USER/]NAME of letters, digits, "
            "-, _ and ."
        ) from None
    except Exception as err:  # the hub client raises its own, requests' and httpx's errors
        raise UserError(_refusal(err, options, name, api.endpoint)) from None
    return repository


def push(options: "TrainOptions", repository: str, steps: int) -> str:
    """Upload the output folder as one commit; returns the address. For the process that wrote the folder.

    A large upload takes longer than other ranks wait at a barrier: let them go first. Raises `DataFault`,
    saying how to upload by hand, if it fails.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=_token(options))
    ignored = _ignored(options)
    try:
        api.upload_folder(
            repo_id=repository,
            folder_path=options.output_dir,
            commit_message=f"Trained up to step {steps:,}",
            ignore_patterns=list(ignored),
        )
    except Exception as err:  # the hub client raises its own, requests', httpx's and xet's errors
        command = ["hf", "upload", repository, str(options.output_dir), "."]
        command += [f"--exclude={pattern}" for pattern in ignored]
        raise DataFault(
            f"--push-to-hub: {repository} did not get all files: {_reason(err)}; the result is "
            f"safe in {options.output_dir}; give the same command again, or: {shlex.join(command)}"
        ) from None
    return f"{api.endpoint}/{repository}"


def _token(options: "TrainOptions") -> str | None:
    """What `--hub-token` says, else what `hf auth login` or HF_TOKEN left."""
    from huggingface_hub import get_token

    return get_token() if options.hub_token is None else options.hub_token.strip()


def _ignored(options: "TrainOptions") -> list[str]:
    """Patterns, relative to the output folder, of what is not uploaded."""
    logs = (options.output_dir / options.logging_dir).resolve()
    output = options.output_dir.resolve()
    if logs == output or output not in logs.parents:
        return IGNORED
    return [*IGNORED, f"{glob.escape(logs.relative_to(output).as_posix())}/*"]


def _refusal(err: Exception, options: "TrainOptions", name: str, endpoint: str) -> str:
    """Why the hub cannot be pushed to, as one line that begins with the flag that is to be changed."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    reason, status = _reason(err), _status(err)
    if isinstance(err, OfflineModeIsEnabled):
        return "--push-to-hub: HF_HUB_OFFLINE is set; unset it, or leave the flag out and upload afterwards"
    if status is None:
        return f"--push-to-hub: {endpoint} cannot be reached: {reason}"
    if status == 401:
        flag = "--push-to-hub: the login's" if options.hub_token is None else "--hub-token: this"
        return f"{flag} token is not valid at {endpoint}; wanted one with the right to write"
    if status == 403:
        return (
            f"--hub-model-id: {name}: the token has no right to write there ({reason}); give [USER/]NAME of "
            "your own, or a token that may write"
        )
    return f"--push-to-hub: {endpoint} refuses {name}: {reason}"


def _status(err: Exception) -> int | None:
    """Of the hub's answer, if there was one."""
    status = getattr(getattr(err, "response", None), "status_code", None)
    return int(status) if status is not None else None


def _reason(err: BaseException) -> str:
    """The hub's own words, or the error's first line."""
    if type(err) is RuntimeError and err.__cause__:  # which says no more than that a file was not uploaded
        err = err.__cause__
    said = getattr(err, "server_message", None) or str(err).strip() or type(err).__name__
    return str(said).splitlines()[0].rstrip(" .")
