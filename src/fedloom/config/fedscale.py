"""FedScale's conf.yml as an experiment file: what each of its options is here, and which have no meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Converted", "convert"]

FILL_IN = "FILL_IN"

_PROCESSES = "processes and machines are the engine's: `fedloom explain engine`"
_UNUSED = "FedScale reads it nowhere"
_CONFIG = "metrics, logs and checkpoints are in the run directory"
_OWN_DATA = "name your own rows: data.source, data.fields and data.partition"
_OWN_MODEL = "name your own model: model.path and model.task"
_PRIVACY = "differential privacy is not part of this"
_OTHER_TASK = "it belongs to a task that is not here"
_TEXT = "the tokenizer and data.max_length say that"
NO_MEANING: Mapping[str, tuple[str, ...]] = {
    _PROCESSES: (
        "ps_ip", "ps_port", "worker_ips", "exp_path", "executor_entry", "aggregator_entry", "auth", "setup_commands",
        "use_container", "ports", "containers", "data_path", "container_network", "num_aggregators", "num_executors",
        "executor_configs", "this_rank", "connection_timeout", "experiment_mode", "engine", "num_loaders", "use_cuda",
        "cuda_device", "task_name", "sync_mode",
    ),
    _UNUSED: (
        "clock_factor", "model_size", "train_uniform", "conf_path", "dump_epoch", "adam_epsilon", "backend", "finetune",
        "labels_path", "line_by_line", "output_dim", "sample_seed", "target_delta", "train_manifest", "test_manifest",
    ),
    _CONFIG: ("log_path", "time_stamp", "wandb_token", "save_checkpoint"),
    _OWN_DATA: (
        "data_dir", "data_set", "data_map_file", "filter_more", "overwrite_cache", "data_cache", "train_size_file",
        "test_size_file",
    ),
    _OWN_MODEL: ("model", "model_zoo", "task", "num_class", "num_classes", "input_shape", "input_dim", "cfg_file", "backbone"),
    _PRIVACY: ("noise_factor", "clip_threshold"),
    _TEXT: ("block_size", "clf_block_size", "mlm", "mlm_probability", "vocab_token_size", "vocab_tag_size", "embedding_file"),
    _OTHER_TASK: (
        "epsilon", "gamma", "memory_capacity", "target_replace_iter", "n_actions", "n_states", "test_output_dir",
        "sample_rate", "window_size", "window_stride", "window", "hidden_size", "hidden_layers", "rnn_type",
        "speed_volume_perturb", "spec_augment", "noise_dir", "noise_prob", "noise_min", "noise_max", "no_bidirectional",
        "bidirectional", "malicious_factor",
    ),
    "all held-out rows are judged: data.held_out": ("test_ratio",),
    "the mean loss of all steps is recorded": ("loss_decay",),
    "learning rates fall along a line or a cosine: federation.schedule": ("decay_factor", "decay_round", "min_learning_rate"),
}  # fmt: skip
"""The options without a meaning here, by why."""

_DEFAULTS: Mapping[str, Any] = {
    "job_name": "demo_job", "rounds": 50, "num_participants": 4, "overcommitment": 1.3, "local_steps": 20,
    "batch_size": 30, "test_bsz": 128, "eval_interval": 5, "sample_mode": "random", "learning_rate": 0.05,
    "gradient_policy": None, "filter_less": 32, "weight_decay": 0.0,
}  # fmt: skip
"""FedScale's own, where they differ from ours or must be said."""

_OORT: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "exploration_factor": ("exploration", float),
    "exploration_decay": ("exploration_decay", float),
    "exploration_min": ("exploration_min", float),
    "cut_off_util": ("cutoff", float),
    "clip_bound": ("clip", float),
    "round_penalty": ("penalty", float),
    "round_threshold": ("preferred", float),
    "pacer_delta": ("pacer_step", float),
    "pacer_step": ("pacer_window", int),
    "blacklist_rounds": ("blacklist", lambda rounds: int(rounds) if int(rounds) > 0 else None),
}
_OORT_ELSEWHERE = ("sample_window", "exploration_alpha", "blacklist_max_len")
_ALGORITHM = ("gradient_policy", "yogi_eta", "yogi_tau", "yogi_beta", "yogi_beta2", "qfed_q", "proxy_mu")
_ASYNC = ("max_concurrency", "max_staleness")
_DEVICES = ("device_conf_file", "device_avail_file")


@dataclass
class Converted:
    """An experiment, as it would be written, and what is to be known of it."""

    experiment: dict[str, Any]
    fill_in: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Of each option that was not taken over, why; and what FedScale does that the file does not say."""


def convert(conf: Mapping[str, Any]) -> Converted:
    """The experiment of a conf.yml, whose `job_conf` is a list of options or a map of them."""
    options = _flat(conf)
    have: dict[str, Any] = {**_DEFAULTS, **options}
    made = Converted({"name": str(have["job_name"])})
    made.experiment |= {
        "model": {"path": FILL_IN, "task": FILL_IN},
        "adapter": "full",
        "data": {"source": FILL_IN, "min_rows": int(have["filter_less"]), "partition": _partition(options)},
        "algorithm": _algorithm(have, options, made),
        "federation": {
            "rounds": int(have["rounds"]),
            "clients_per_round": int(have["num_participants"]),
            "weighting": "uniform",
        },
        "local": {
            "optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "lr": float(have["learning_rate"]),
            "steps": int(have["local_steps"]), "batch_size": int(have["batch_size"]),
        },
        "evaluation": {"every": int(have["eval_interval"]), "batch_size": int(have["test_bsz"])},
    }  # fmt: skip
    made.fill_in = ["model.path", "model.task", "data.source"]
    if "data_map_file" in options:
        made.fill_in.append("data.partition.column")
    federation = made.experiment["federation"]
    federation["selection"] = _selection(have, options)
    if any(name in options for name in _DEVICES):
        made.experiment["devices"] = {"kind": "file", "path": "devices.parquet", "reuse": True}
        made.notes.append(
            "devices: make devices.parquet from FedScale's files: fedloom devices import devices.parquet --capacity "
            f"{options.get('device_conf_file', 'FILE')}"
            + (f" --behaviour {options['device_avail_file']}" if "device_avail_file" in options else "")
        )
        federation["wait"] = {"kind": "overcommit", "factor": float(have["overcommitment"])}
    elif "overcommitment" in options:
        made.notes.append(
            "overcommitment: without device files nobody is late, so that no more need be asked than are wanted"
        )
    if "async" in str(conf.get("aggregator_entry", "")) or any(name in options for name in _ASYNC):
        _asynchronous(made, have)
    made.notes += _left_out(options, str(have["sample_mode"]))
    made.notes += [
        "local: FedScale's clients take SGD with momentum 0.9 and weight decay 5e-4 whatever the file says (Adam for `task: nlp`)",
        "weighting: FedScale averages clients alike, whatever they hold; `samples` is FedAvg's own",
    ]
    return made


def _flat(conf: Mapping[str, Any]) -> dict[str, Any]:
    """All options, those of `job_conf` among them, with FedScale's dashes as underscores."""
    jobs = conf.get("job_conf") or []
    parts = [jobs] if isinstance(jobs, Mapping) else [part for part in jobs if isinstance(part, Mapping)]
    own = {key: value for key, value in conf.items() if key != "job_conf"}
    return {str(key).replace("-", "_"): value for part in (own, *parts) for key, value in part.items()}


def _partition(options: Mapping[str, Any]) -> dict[str, Any]:
    if "data_map_file" in options:
        return {"kind": "column", "column": FILL_IN}
    return {"kind": "iid", "clients": int(options.get("num_participants", _DEFAULTS["num_participants"]))}


def _algorithm(have: Mapping[str, Any], options: Mapping[str, Any], made: Converted) -> Any:
    policy = str(have["gradient_policy"] or "fed-avg").replace("_", "-").lower()
    if policy in ("fed-yogi", "yogi"):
        if policy == "yogi":
            made.notes.append(
                "gradient_policy: FedScale takes `yogi` for fed-avg without saying so; taken for fed-yogi here"
            )
        given = {"yogi_eta": "lr", "yogi_tau": "tau", "yogi_beta": "beta1", "yogi_beta2": "beta2"}
        defaults = {"yogi_eta": 3e-3, "yogi_tau": 1e-8, "yogi_beta": 0.9, "yogi_beta2": 0.99}
        return {"name": "fedyogi"} | {ours: float(have.get(name, defaults[name])) for name, ours in given.items()}
    if policy == "fed-prox":
        made.notes.append(
            "gradient_policy: FedScale's fed-prox has the sign of its term reversed, away from the server's model"
        )
        return {"name": "fedprox", "mu": float(have.get("proxy_mu", 0.1))}
    if policy in ("q-fedavg", "qfedavg"):
        return {"name": "qfedavg", "q": float(have.get("qfed_q", 1.0))}
    if policy not in ("fed-avg", "none"):
        made.notes.append(f"gradient_policy: {policy!r} is not known, and FedScale takes it for fed-avg")
    return "fedavg"


def _selection(have: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    if have["sample_mode"] != "oort":
        return "uniform"
    return {"name": "oort"} | {ours: to(options[name]) for name, (ours, to) in _OORT.items() if name in options}


def _asynchronous(made: Converted, have: Mapping[str, Any]) -> None:
    federation = made.experiment["federation"]
    made.experiment["algorithm"] = {"name": "fedbuff", "buffer": int(have["num_participants"])}
    federation |= {"clients_per_round": int(have.get("max_concurrency", 10)), "selection": "uniform"}
    federation.pop("wait", None)
    made.notes.append("max_staleness: late updates count less (algorithm.exponent), and none is thrown away")
    made.notes.append("FedBuff averages differences here; FedScale averages the old models themselves")


def _left_out(options: Mapping[str, Any], mode: str) -> list[str]:
    """Why options were not taken over, a reason a line, in the file's order."""
    why = {name: reason for reason, names in NO_MEANING.items() for name in names}
    why |= dict.fromkeys(_OORT_ELSEWHERE, "Oort here has the paper's rules, which need none")
    if mode != "oort":
        why |= dict.fromkeys(_OORT, "it belongs to Oort, and sample_mode is not oort")
    known = {*_DEFAULTS, *_OORT, *_ALGORITHM, *_ASYNC, *_DEVICES}
    by_reason: dict[str, list[str]] = {}
    for name in options:
        if name in why or name not in known:
            by_reason.setdefault(why.get(name, "FedScale has no such option"), []).append(name)
    notes = [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    if "weight_decay" in options:
        notes.append("weight_decay: FedScale's clients take 5e-4 whatever it says; set local.weight_decay")
    return notes
