"""The verbs that run a stage: Lightning's CLI, and where it must behave otherwise.

What differs from plain LightningCLI: ``--ckpt`` as a short name; a checkpoint or a pipeline folder
gives the *defaults* of ``validate``, ``test``, ``predict`` and ``encode``, so that what the user
says wins; ``predict`` has flat options; the configuration of each verb gets its own file; a kill
cuts no checkpoint.
"""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from cmdvid.preemption import Preemption
from cmdvid.progress import ProgressLines
from cmdvid.settings import (
    CONFIG_KEY,
    defaults,
    flat,
    option,
    plain,
    read_settings,
    spread_options,
    use_pipeline,
)
from cmdvid.signals import LISTENER
from cmdvid.slurm.step import check_alone, check_ranks, in_job, started_by_slurm
from cmdvid.trainer import CMDTrainer
from cmdvid.whole import whole

CKPT_HELP = "Checkpoint: a file, 'last' or 'best'; for test and predict also a pipeline folder."
PREDICT_OPTIONS: dict[str, tuple[Any, str]] = {
    "prompt": (str | None, "Caption to generate from."),
    "prompts": (str | None, "File of captions, one a line."),
    "num_inference_steps": (int | None, "Denoising steps of each of the two models."),
    "guidance_scale": (float | None, "How closely to follow the caption; 1 is no guidance."),
    "negative_prompt": (str | None, "Caption to stay away from."),
    "seed": (int | None, "Seed of the noise."),
    "out": (str | None, "Folder of the mp4 files (default: runs/predict)."),
    "fps": (int | None, "Frames a second of the mp4 files (default: 8)."),
}
NOISE = (  # how jsonargparse reports a value of type "a stage or None"
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value type:",
    "Given value: Namespace(",
    "Given value: NestedArg(",
)


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that appear complete or not at all, also if the process is killed meanwhile.

    Lightning writes to the system's folder of temporary files and moves the file from there. To
    another file system that is a copy over the last good checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write beside the file, then rename; what is no local file is left to Lightning."""
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        with whole(path) as part:
            torch.save(checkpoint, part)
        return None


class SaveConfig(SaveConfigCallback):
    """Keeps the settings of a run, in every checkpoint and as ``config.<verb>.yaml``.

    Not Lightning's hyperparameters: stages leave networks and optimizers out of those.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, *, verb: str) -> None:
        super().__init__(parser, config)
        self.verb = verb

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file once, on the first process, and keep an older, other one."""
        log_dir = trainer.log_dir  # asked on every process, for it is a broadcast
        if self.already_saved or not trainer.is_global_zero:
            return
        self.already_saved = True
        folder = Path(self.config.get("out") or log_dir or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_unset=False)  # null may not be the default
        path, number = folder / f"config.{self.verb}.yaml", 1
        while path.exists() and path.read_text() != text:
            number += 1
            path = folder / f"config.{self.verb}.{number}.yaml"
        path.write_text(text)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let the checkpoint say how its stage and data are built."""
        checkpoint[CONFIG_KEY] = plain(self.parser, self.config)


class Parser(LightningArgumentParser):
    """Reports a wrong option or setting in one line, without hundreds of lines of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what the parser found, less what it says of its own types."""
        if not self.exit_on_error:
            super().error(message, ex)
        lines = (line.strip().removeprefix("- ") for line in message.splitlines())
        text = " ".join(line for line in lines if line and not line.startswith(NOISE))
        if text.endswith("required: fit.model"):
            text += "; give --config FILE"
        elif text.endswith(".model"):
            text += "; give --config FILE or --ckpt PATH"
        raise ValueError(text) from ex


class CLI(LightningCLI):
    """Builds stage, data and trainer from the command line and runs the verb."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """List the verbs and the arguments of their methods that are no options."""
        verbs = LightningCLI.subcommands() | {"encode": {"model", "datamodule"}}
        return {verb: skip | {"ckpt_path", "return_predictions"} for verb, skip in verbs.items()}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> Any:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        # the first name is the one Lightning knows
        parser.add_argument("--ckpt_path", "--ckpt", type=str | None, default=None, help=CKPT_HELP)
        self._subcommand_method_arguments[subcommand].append("ckpt_path")
        if subcommand == "predict":
            for name, (kind, text) in PREDICT_OPTIONS.items():
                parser.add_argument(f"--{name}", type=kind, default=None, help=text)
        if subcommand in ("predict", "encode"):
            parser.set_defaults({"trainer.logger": False})  # their output is files
        return parser

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint's settings beat the user's."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse with the checkpoint's settings as defaults, then spread the flat options."""
        verb, ckpt = args[0], option(args, "--ckpt", "--ckpt_path")
        ckpt = None if ckpt in ("last", "best") else ckpt
        if ckpt and verb != "fit":
            self._subcommand_parsers[verb].set_defaults(defaults(ckpt, verb))
        self.config = parser.parse_args(args)
        settings = self.config[verb]
        if ckpt and verb == "fit":
            self._compare(ckpt)
        elif ckpt and Path(ckpt).is_dir():
            use_pipeline(settings, ckpt)
        if verb == "predict":
            spread_options(settings)

    def _compare(self, ckpt: str) -> None:
        """Warn when a resumed run has other settings than its checkpoint."""
        model = plain(self._subcommand_parsers["fit"], self.config["fit"])["model"]
        saved = read_settings(ckpt).get("model", model)
        if saved["class_path"] != model["class_path"]:
            raise ValueError(
                f"{ckpt}: a checkpoint of {saved['class_path']}, which {model['class_path']} "
                "cannot resume from"
            )
        old, new = dict(flat(saved)), dict(flat(model))
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if changed:
            rank_zero_warn(f"{ckpt} was trained with other settings of: {', '.join(changed)}")

    def before_instantiate_classes(self) -> None:
        """Tell the callback that saves the configuration which verb it is for."""
        self.save_config_kwargs = {"verb": self.subcommand}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer: the processes that Slurm has started, and checkpoints of our own way.

        Strategies that write checkpoints in their own way keep it.
        """
        given = self.config_init[str(self.subcommand)].trainer.plugins or []
        plugins: list[Any] = list(given) if isinstance(given, list) else [given]
        ranks = in_job() and started_by_slurm()
        if ranks:  # said, not found out, for Lightning goes by the job's name and would requeue it
            plugins.append(SLURMEnvironment(auto_requeue=False))
        elif in_job():
            plugins.append(LightningEnvironment())
        trainer = super().instantiate_trainer(plugins=plugins, **kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        if ranks:
            check_ranks(trainer.num_devices, trainer.num_nodes)
        elif in_job():
            check_alone(trainer.num_nodes)
        if trainer.num_devices * trainer.num_nodes > 1:
            _save_no_errors(trainer)
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        # predictions are written as they come; kept, they would fill the memory
        return kwargs | ({"return_predictions": False} if subcommand == "predict" else {})


def _save_no_errors(trainer: Trainer) -> None:
    """Turn off save_on_exception: saving ends in a barrier, to which only one process would come.

    It would wait there for ever, and the others for it.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.save_on_exception:
            callback.save_on_exception = False
            rank_zero_info("several processes: save_on_exception is off, it would wait for ever")


def main(args: Sequence[str]) -> None:
    """Run ``fit``, ``validate``, ``test``, ``predict`` or ``encode``.

    Args:
        args: The verb and its options.

    Raises:
        ValueError: If an option or a setting is wrong; the message names it.
    """
    import cmdvid.stages  # noqa: F401  # so that short class names are found
    from cmdvid.data.datamodule import VideoDataModule

    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()  # advertisements
    )
    # lightning 2.6 asks torch 2.14 in an old way; nothing that a user could change
    warnings.filterwarnings("ignore", message=".*LeafSpec")
    # a run on a machine that has Slurm, but by itself; cmdvid.slurm.step looks closer
    warnings.filterwarnings("ignore", message="The `srun` command is available")
    if args[0] != "fit":  # says where new checkpoints would go; there are none
        warnings.filterwarnings("ignore", message="The dirpath has changed")
    trainer_defaults: dict[str, Any] = {"use_distributed_sampler": False}  # our samplers share out
    callbacks: list[Any] = [Preemption()] if LISTENER.listening else []
    if args[0] == "fit" and not sys.stdout.isatty():  # a job's log
        trainer_defaults["enable_progress_bar"] = False
        callbacks.append(ProgressLines())
    CLI(
        LightningModule,
        VideoDataModule,
        args=list(args),
        subclass_mode_model=True,
        trainer_class=CMDTrainer,
        trainer_defaults=trainer_defaults | {"callbacks": callbacks},
        seed_everything_default=42,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfig,
        parser_class=Parser,
        parser_kwargs={"prog": "cmdvid", "allow_abbrev": False},
    )
