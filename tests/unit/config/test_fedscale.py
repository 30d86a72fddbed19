"""FedScale's conf.yml: every option is taken over, or said to have no meaning."""

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from fedloom import api
from fedloom.cli.app import app
from fedloom.config.fedscale import NO_MEANING, convert

JOB = {
    "job_name": "femnist", "rounds": 1000, "num_participants": 50, "local_steps": 5, "batch_size": 20, "learning_rate": 0.05,
    "filter_less": 21, "eval_interval": 10, "test_bsz": 20,
}  # fmt: skip
# The options of FedScale's config_parser.py.
OPTIONS = [
    "job_name",
    "log_path",
    "wandb_token",
    "time_stamp",
    "task",
    "engine",
    "experiment_mode",
    "this_rank",
    "num_executors",
    "executor_configs",
    "connection_timeout",
    "ps_ip",
    "ps_port",
    "backend",
    "data_dir",
    "data_set",
    "data_map_file",
    "device_conf_file",
    "device_avail_file",
    "filter_less",
    "filter_more",
    "test_ratio",
    "num_loaders",
    "num_classes",
    "input_shape",
    "input_dim",
    "output_dim",
    "embedding_file",
    "overwrite_cache",
    "block_size",
    "vocab_token_size",
    "vocab_tag_size",
    "model",
    "model_zoo",
    "use_cuda",
    "cuda_device",
    "save_checkpoint",
    "rounds",
    "num_participants",
    "overcommitment",
    "local_steps",
    "batch_size",
    "test_bsz",
    "eval_interval",
    "sample_mode",
    "sample_seed",
    "learning_rate",
    "min_learning_rate",
    "decay_factor",
    "decay_round",
    "weight_decay",
    "adam_epsilon",
    "loss_decay",
    "gradient_policy",
    "yogi_eta",
    "yogi_tau",
    "yogi_beta",
    "yogi_beta2",
    "qfed_q",
    "proxy_mu",
    "pacer_delta",
    "pacer_step",
    "exploration_alpha",
    "exploration_factor",
    "exploration_decay",
    "exploration_min",
    "sample_window",
    "round_threshold",
    "round_penalty",
    "clip_bound",
    "cut_off_util",
    "blacklist_rounds",
    "blacklist_max_len",
    "max_concurrency",
    "max_staleness",
    "noise_factor",
    "clip_threshold",
    "target_delta",
    "malicious_factor",
    "line_by_line",
    "clf_block_size",
    "mlm",
    "mlm_probability",
    "epsilon",
    "gamma",
    "memory_capacity",
    "target_replace_iter",
    "n_actions",
    "n_states",
    "cfg_file",
    "test_output_dir",
    "train_size_file",
    "test_size_file",
    "data_cache",
    "backbone",
    "train_manifest",
    "test_manifest",
    "sample_rate",
    "labels_path",
    "window_size",
    "window_stride",
    "window",
    "hidden_size",
    "hidden_layers",
    "rnn_type",
    "finetune",
    "speed_volume_perturb",
    "spec_augment",
    "noise_dir",
    "noise_prob",
    "noise_min",
    "noise_max",
    "no_bidirectional",
    "clock_factor",
    "model_size",
    "train_uniform",
    "conf_path",
    "dump_epoch",
]


def made(**job):
    return convert({"job_conf": [{name: value} for name, value in (JOB | job).items()]})


def test_what_is_taken_over():
    own = made().experiment
    assert own["name"] == "femnist" and own["algorithm"] == "fedavg"
    assert own["federation"] == {
        "rounds": 1000,
        "clients_per_round": 50,
        "weighting": "uniform",
        "selection": "uniform",
    }
    assert own["data"]["min_rows"] == 21 and own["data"]["partition"] == {"kind": "iid", "clients": 50}
    assert (own["local"]["lr"], own["local"]["steps"], own["local"]["batch_size"]) == (0.05, 5, 20)
    assert own["evaluation"] == {"every": 10, "batch_size": 20}


def test_fedscales_defaults_are_written_down():
    own = convert({"job_conf": [{"job_name": "x"}]}).experiment
    assert own["federation"]["clients_per_round"] == 4 and own["local"]["steps"] == 20 and own["local"]["lr"] == 0.05


@pytest.mark.parametrize(
    ("policy", "options", "algorithm"),
    [
        ("fed-yogi", {"yogi_eta": 0.01}, {"name": "fedyogi", "lr": 0.01, "tau": 1e-8, "beta1": 0.9, "beta2": 0.99}),
        ("fed-prox", {"proxy_mu": 0.2}, {"name": "fedprox", "mu": 0.2}),
        ("q-fedavg", {"qfed_q": 0.1}, {"name": "qfedavg", "q": 0.1}),
        ("fed-avg", {}, "fedavg"),
    ],
)
def test_algorithms(policy, options, algorithm):
    assert made(gradient_policy=policy, **options).experiment["algorithm"] == algorithm


def test_what_fedscale_does_in_silence_is_said():
    assert any("without saying so" in note for note in made(gradient_policy="yogi").notes)
    assert any("reversed" in note for note in made(gradient_policy="fed-prox").notes)
    assert any("takes it for fed-avg" in note for note in made(gradient_policy="fed-adam").notes)
    assert any("momentum 0.9" in note for note in made().notes)


def test_oort_and_devices():
    own = made(
        sample_mode="oort", round_penalty=1.5, pacer_delta=10, pacer_step=20, blacklist_rounds=-1, sample_window=5.0,
        device_conf_file="capacity", device_avail_file="behaviour", overcommitment=1.1,
    )  # fmt: skip
    federation = own.experiment["federation"]
    assert federation["selection"] == {
        "name": "oort",
        "penalty": 1.5,
        "pacer_step": 10.0,
        "pacer_window": 20,
        "blacklist": None,
    }
    assert federation["wait"] == {"kind": "overcommit", "factor": 1.1}
    assert own.experiment["devices"] == {"kind": "file", "path": "devices.parquet", "reuse": True}
    assert any("--capacity capacity --behaviour behaviour" in note for note in own.notes)
    assert any(note.startswith("sample_window:") for note in own.notes)
    assert any("sample_mode is not oort" in note for note in made(round_penalty=2.0).notes)


def test_the_asynchronous_aggregator_is_fedbuff():
    own = made(max_concurrency=60, max_staleness=5, device_conf_file="capacity").experiment
    assert own["algorithm"] == {"name": "fedbuff", "buffer": 50}
    assert own["federation"]["clients_per_round"] == 60 and "wait" not in own["federation"]


def test_no_option_is_passed_over_in_silence():
    """Each option of FedScale's, set to some value, changes the experiment or is named with a reason."""
    values = {"gradient_policy": "fed-yogi", "sample_mode": "oort", "job_name": "other"}
    for name in OPTIONS:
        base = {"gradient_policy": "fed-yogi"} if name.startswith("yogi") else {}
        base |= {"proxy_mu": {"gradient_policy": "fed-prox"}, "qfed_q": {"gradient_policy": "q-fedavg"}}.get(name, {})
        base |= {"sample_mode": "oort"} if name in ("pacer_delta", "blacklist_rounds") else {}
        value = values.get(name, 7)
        plain, changed = made(**base), made(**base, **{name: value})
        told = any(name in note.partition(":")[0].split(", ") for note in changed.notes)
        assert told or changed.experiment != plain.experiment or plain.notes != changed.notes, name
        assert not any("no such option" in note for note in changed.notes), name


def test_an_option_of_nobodys_is_named():
    assert "learning_rat: FedScale has no such option" in made(learning_rat=3).notes


def test_every_reason_is_given_once():
    names = [name for own in NO_MEANING.values() for name in own]
    assert len(names) == len(set(names))


def test_the_command_writes_a_file_that_is_valid_once_filled_in(tmp_path):
    conf, to = tmp_path / "conf.yml", tmp_path / "experiment.yaml"
    with conf.open("w") as file:
        YAML(typ="safe").dump({"ps_ip": "localhost", "job_conf": [{k: v} for k, v in JOB.items()]}, file)
    done = CliRunner().invoke(app, ["import", "fedscale", str(conf), "--to", str(to)])
    assert done.exit_code == 0, done.output
    assert "fill in model.path, model.task, data.source" in done.output and "ps_ip: processes" in done.output
    given = [
        "model.path=sample:all-minilm-l6-v2",
        "model.task=classification",
        "data.source=sample:bbc-news",
        "data.fields={label: topic}",
    ]
    loaded = api.load(to, given)
    assert loaded.federation.rounds == 1000 and loaded.local.momentum == 0.9
    again = CliRunner().invoke(app, ["import", "fedscale", str(conf), "--to", str(to)])
    assert again.exit_code == 2 and "nothing is overwritten" in again.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("a: [", "no YAML"),
        ("a: 1", "no job_conf"),
        ("- 1", "no job_conf"),
        ("job_conf: [{rounds: many}]", "no value of its kind"),
    ],
)
def test_what_is_no_conf(text, words, tmp_path):
    conf = tmp_path / "conf.yml"
    if text is not None:
        conf.write_text(text)
    done = CliRunner().invoke(
        app, ["import", "fedscale", str(conf), "--to", str(tmp_path / "x.yaml")], prog_name="fedloom"
    )
    assert done.exit_code == 2 and words in done.stderr and not (tmp_path / "x.yaml").exists()
