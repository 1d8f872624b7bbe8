"""Command lines of diffusers' Kandinsky 2.2 scripts, where click alone would not take them.

Most flags have kept their names. Here are those that became a choice of another flag, those that mean
nothing for a cache, and those that took several values in a row.
"""

from typing import Any

import click

from data_tools.errors import UserError
from train.ranks import say_once_a_node

CHOICES = {
    "--use-8bit-adam": ("--optimizer", "adamw-8bit"),
    "--enable-xformers-memory-efficient-attention": ("--attention", "xformers"),
}
"An old flag → the flag and value that it stands for."
UNUSED = ("--dataloader-num-workers", "--local-rank")
"Each with one value: a thread reads the cache, and the launcher's environment says which rank this is."
REPEATED = ("--validation-prompts",)
"`--flag a b c` is `--flag a --flag b --flag c`."
DATA = {
    "--dataset-name": "--data hf:NAME",
    "--dataset-config-name": "--data",
    "--train-data-dir": "--data",
    "--image-column": "--image-column",
    "--caption-column": "--caption-column",
    "--max-train-samples": "--max-samples",
}
"Where the old scripts found pictures and captions → the flag of `precompute` that took its place."


NEEDS = {
    "ema_decay": "use_ema",
    "ema_power": "use_ema",
    "compile_mode": "compile",
    "hub_model_id": "push_to_hub",
    "hub_token": "push_to_hub",
    "num_validation_images": "validation_prompts",
}
"An option → the one without which it has no effect."


class TrainCommand(click.Command):
    """A command that also takes the old scripts' command lines, and says which flags have no effect."""

    def invoke(self, ctx: click.Context) -> Any:
        for name, needed in NEEDS.items():
            given = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
            if given and not ctx.params[needed]:
                flag, other = (f"--{each.replace('_', '-')}" for each in (name, needed))
                say_once_a_node(f"{flag}: has no effect without {other}")
        return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, rewritten(args))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names the old flags, which the list of options does not."""
        formatter.write_paragraph()
        same = ", ".join(f"{old} ({' '.join(new)})" for old, new in CHOICES.items())
        formatter.write_text(f"Also understood: {same}; {' and '.join(UNUSED)} are ignored.")


def rewritten(args: list[str]) -> list[str]:
    """The same command line in the words of today's flags. Raises `UserError` for what they do not cover."""
    new: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        flag, equals, _ = word.partition("=")
        flag = flag.replace("_", "-") if flag.startswith("--") else flag
        if flag in CHOICES and not equals:
            new += CHOICES[flag]
        elif flag in UNUSED:
            if not equals and rest:
                rest.pop(0)
        elif flag in REPEATED and not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{flag}: nothing given, wanted one text or several")
            new += [word, rest.pop(0)]
            while rest and not rest[0].startswith("-"):
                new += [word, rest.pop(0)]
        elif flag in DATA:
            raise UserError(f"{flag}: is for precompute ({DATA[flag]}); give the cache it made, with --cache")
        elif flag == "--cache-dir":
            raise UserError(f"{flag}: of downloads is the environment variable HF_HOME now")
        else:
            new.append(word)
    return new
