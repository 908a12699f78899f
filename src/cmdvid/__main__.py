"""The command ``cmdvid``: answers what needs no torch at once, and hands the rest to cmdvid.cli."""

import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path

import cmdvid
from cmdvid.signals import LISTENER, expected
from cmdvid.slurm.step import lost_another, tell_failure

PACKAGE = Path(__file__).parent

# Verb: (one line, the options most people need). Short on purpose, so that help costs no import of
# Lightning; --help-all is the full list, and a test compares the two.
FIT = """\
  --config FILE          a YAML of configs/; may be given again, later files win
  --model.KEY, --data.KEY, --trainer.KEY VALUE
                         change one setting, e.g. --trainer.max_steps 100
  --ckpt PATH            {ckpt}
  --seed_everything N    seed of everything random (default: 42)
  --print_config         print the settings as YAML and stop
  --model.help STAGE     the settings of one stage, e.g. --model.help ContentStage"""
VERBS = {
    "fit": ("Train one stage.", FIT.format(ckpt="resume from this checkpoint; the config decides")),
    "validate": (
        "Measure a stage on its validation clips.",
        FIT.format(ckpt="checkpoint; what is not given is as in its training"),
    ),
    "test": (
        "Generate and score.",
        FIT.format(ckpt="checkpoint or pipeline folder; what is not given is as in it"),
    ),
    "predict": (
        "Write mp4 files and a contact sheet.",
        """\
  --ckpt PATH            autoencoder checkpoint: reconstructions; content checkpoint: content
                         frames; pipeline folder (see export): videos for prompts
  --prompt TEXT          one caption
  --prompts FILE         captions, one a line
  --negative_prompt TEXT what to stay away from
  --num_inference_steps N, --guidance_scale S, --seed N
                         how to sample
  --out DIR              where the files go (default: runs/predict)
  --config, --model.KEY, --data.KEY, --trainer.KEY
                         as in fit""",
    ),
    "encode": (
        "Write the latents of a data set, for the content and motion stages to train on.",
        """\
  --ckpt PATH            autoencoder checkpoint; the data are those of its training
  --out DIR              where the latents go (default: latents); after a stop it goes on there
  --dtype fp32|fp16|bf16 precision of what is stored (default: fp32)
  --clips_per_video N    windows of each training video (default: 1)
  --flips true           training clips mirrored too
  --content_conditioner CLASS, --motion_conditioner CLASS
                         store what a frozen text encoder makes of the captions
  --frames_only true     the codec's frames, for the autoencoder stage; no checkpoint needed
  --shard_size N         clips in a file (default: 512)
  --overwrite true       begin anew where other settings were used before
  --config, --model.KEY, --data.KEY, --trainer.KEY
                         as in fit""",
    ),
    "export": (
        "Make one pipeline folder of the trained stages.",
        """\
  --content PATH         content checkpoint
  --motion PATH          motion checkpoint
  --out DIR              where the pipeline goes
  --images-out DIR       where the content model alone goes, for diffusers'
                         StableDiffusionPipeline, if it is Stable Diffusion's U-Net""",
    ),
    "evaluate": (
        "Score clips of any model against real ones; compare two reports.",
        """\
  --generated DIR        the clips: videos, a folder of pictures for each, or npz
  --real DIR             real videos: UCF-101, MSR-VTT or WebVid as published, or any videos
  --protocol NAME|FILE   ucf101-2048, ucf101-10k, ucf101-zeroshot, webvid-5k, msrvtt-2990,
                         msrvtt-1k, cmd-2000, shapes, shapes-fast, or a YAML like those of
                         cmdvid/presets
  --captions FILE        caption of each generated clip, one a line, in the order of their names
  --i3d FILE, --c3d FILE, --clip FILE|TAG
                         weights for FVD, the Inception Score and CLIPSIM
  --out DIR              where the report goes (default: runs/evaluate)
  compare A B            in place of options: two reports or their folders, side by side""",
    ),
    "profile": (
        "Print what stages cost: parameters, operations, memory.",
        """\
  --config FILE          a stage's YAML; again for the other stages, one file each. Give that of
                         the autoencoder among them, for it sets the sizes. Without any: the
                         paper's setting beside its tables
  --data.KEY, --trainer.KEY VALUE
                         change a setting of all of them, e.g. --data.batch_size 2""",
    ),
    "prepare": (
        "Pack videos into tar shards, as they are or made quick to read.",
        """\
  --index CLASS, --index.KEY VALUE
                         the videos, e.g. --index cmdvid.data.index.VideoFolder --index.root DIR
  --out DIR              where the shards go; run again to write those that are missing
  --short-side N         write videos anew, this small, with key frames close together
  --samples-per-shard N  (default: 1000)
  --num-workers N        videos worked on at a time (default: as many as processors)""",
    ),
    "slurm": (
        "Submit a stage, or all of them, to a Slurm cluster.",
        """\
  fit, validate, test, predict or encode, and any of its options, e.g. fit --config FILE
  --nodes N              how many machines; devices of each: --trainer.devices
  --dry-run              print the batch scripts, let Slurm check them, and stop
  --cluster FILE         YAML of the cluster (default: configs/cluster/slurm.yaml)
  --time LIMIT, --partition NAME
                         instead of those of the YAML
  --name NAME, --after ID[:ID]
                         of the job; jobs that must end well before
  --seeds 0-7            predict as an array, each task with a seed of its own
  --parts N              predict as an array, each task with a part of --prompts FILE

  pipeline, all stages as jobs that wait for each other; --config and the like are of the trainings
  --autoencoder FILE, --content FILE, --motion FILE, --generate FILE
                         their YAMLs; again for another on top
  --encode FILE          options of encode, as a YAML: dtype, flips, clips_per_video ...
  --prompts FILE         make videos of these captions in the end
  --resume               go on with what an earlier, failed pipeline has left""",
    ),
    "shapes": (
        "Write the procedural data set: mp4 files and a csv of captions.",
        """\
  --out DIR              where the files go
  --num-videos N         how many to train on (default: 6000)
  --val-videos N, --heldout-videos N
                         how many to validate on, of seen and of unseen combinations
  --num-frames L, --image-size [H,W], --fps N
                         what clips they are (default: 16 frames of [64,64] at 8)
  --seed N               everything follows from it (default: 0)""",
    ),
}
MODULES = {  # whose main reads its own options
    "evaluate": "cmdvid.evaluate_command",
    "profile": "cmdvid.profile_command",
    "slurm": "cmdvid.slurm.command",
}
FUNCTIONS = {  # verbs that are a function and need no Lightning
    "export": ("cmdvid.export", "export_pipeline"),
    "prepare": ("cmdvid.data.prepare", "write_shards"),
    "shapes": ("cmdvid.data.shapes", "write_shapes"),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run one verb.

    Args:
        args: Command line without the program's name; ``sys.argv`` if not given.

    Raises:
        SystemExit: Code 2 for a wrong command line or input, with one line that says what it is.
    """
    argv = [_underscored(arg) for arg in (sys.argv[1:] if args is None else args)]
    verb = argv[0] if argv else "--help"
    if verb in ("-h", "--help", "--version"):
        print(f"cmdvid {cmdvid.__version__}" if verb == "--version" else _overview())
    elif verb not in VERBS:
        _fail(f"no verb {verb!r}; there are {', '.join(VERBS)}")
    elif {"-h", "--help"} & set(argv):
        print(_help(verb))
    else:
        argv = ["--help" if arg == "--help_all" else arg for arg in argv]
        try:
            _run(verb, argv)
        except ArgumentError as error:
            _fail(" ".join(str(error).split()))
        except ValueError as error:
            message = _ours(error)
            if message is None or os.environ.get("CMDVID_DEBUG"):
                raise
            _fail(message)


def _run(verb: str, argv: list[str]) -> None:
    """Import what the verb needs, and call it."""
    from importlib import import_module

    if verb in MODULES:
        return import_module(MODULES[verb]).main(argv[1:])
    if verb not in FUNCTIONS:
        return _run_stage(argv)

    from jsonargparse import auto_cli

    module, name = FUNCTIONS[verb]
    function = getattr(import_module(module), name)
    parser = {"prog": f"cmdvid {verb}", "allow_abbrev": False, "exit_on_error": False}
    auto_cli(function, args=argv[1:], as_positional=False, **parser)
    return None


def _run_stage(argv: list[str]) -> None:
    """Run one of Lightning's verbs; what can go on later listens for the end of its job."""
    if argv[0] in ("fit", "encode") and expected():
        LISTENER.listen()
    end = LISTENER.ignore
    try:
        from cmdvid.cli import main as run_stage

        run_stage(argv)
    except Exception as error:
        if not lost_another(error):  # else the script of the job is to see the kill
            tell_failure()
            end = LISTENER.stop
        raise
    finally:
        if LISTENER.listening:
            end()


def _underscored(arg: str) -> str:
    """Let ``--num-videos`` mean ``--num_videos``; values stay as they are."""
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _ours(error: BaseException | None) -> str | None:
    """Find the message that our own code raised, for only that is meant for the user.

    The parser wraps what a constructor raises, so the causes are looked at as well.
    """
    while error is not None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        source = Path(trace.tb_frame.f_code.co_filename) if trace else Path()
        if isinstance(error, ValueError):
            if message := _of_a_worker(str(error)):
                return message
            if source.is_relative_to(PACKAGE):
                return str(error)
        error = error.__cause__
    return None


def _of_a_worker(text: str) -> str | None:
    """Find our message in what torch makes of an error in a loader's worker: a whole traceback."""
    if not text.startswith("Caught "):
        return None
    raised = re.compile(r'^  File "(.*)", line \d+.*\n(?:    .*\n)*[\w.]+: ', re.MULTILINE)
    *_, last = None, *raised.finditer(text)
    if last is None or not Path(last[1]).is_relative_to(PACKAGE):
        return None
    return text[last.end() :].rstrip()


def _fail(message: str) -> None:
    print(f"cmdvid: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _overview() -> str:
    lines = "\n".join(f"  {verb:<10} {line}" for verb, (line, _) in VERBS.items())
    return (
        "usage: cmdvid VERB [options]\n\nText to video by content frames and motion latents.\n\n"
        f"{lines}\n\n  cmdvid VERB --help      the options most people need\n"
        "  cmdvid VERB --help-all  all of them\n  cmdvid --version"
    )


def _help(verb: str) -> str:
    line, options = VERBS[verb]
    return (
        f"usage: cmdvid {verb} [options]\n\n{line}\n\n{options}\n"
        "  --help-all             every option (imports everything, takes a few seconds)"
    )


if __name__ == "__main__":
    main()
