"""Every way we know to get an experiment file wrong: what is written, the key that is blamed, words of the message.

Run as a script, it loads every case and prints what heavy libraries that imported.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from mistakes_fakes import BASE, load_fake, write_folder

from fedloom.errors import FedloomError


class Case(NamedTuple):
    """What is written, the key that is blamed, and words of the message."""

    written: str | list[str]
    key: str
    words: str


def changed(old: str, new: str) -> str:
    """The good file with a part replaced."""
    assert BASE.count(old) == 1, old
    return BASE.replace(old, new)


CASES = [
    # the file as YAML
    Case("", "", "the file is empty"),
    Case("# only a comment\n", "", "the file is empty"),
    Case("- name: first\n", "", "not a map of keys"),
    Case("just words\n", "", "not a map of keys"),
    Case(changed("  rounds: 3", "\trounds: 3"), "", "Indent with spaces"),
    Case(changed("  rounds: 3", "  rounds: [3"), "", "column"),
    Case(changed("name: first", "name: first: second"), "", "quotes"),
    Case(changed("name: first", 'name: "first'), "", "cannot be read"),
    Case(changed("name: first", "name: *first"), "", "begins with *"),
    Case(changed("name: first", "name: !first x"), "name", "tag !first"),
    Case(changed("name: first", "name: a\x07b"), "", "U+0007"),
    Case(BASE + "---\n" + BASE, "", "one experiment a file"),
    Case(BASE + "name: second\n", "name", "given twice, first on line 1"),
    Case(changed("  rounds: 3", "  rounds: 3\n  rounds: 4"), "federation.rounds", "given twice, first on line 9"),
    Case(changed("  rounds: 3", "  rounds: 3\n  [a, b]: 4"), "federation", "a key must be a word"),
    Case(changed("adapter: {r: 4}", "adapter: &a {r: 4, targets: *a}"), "adapter.targets", "repeats itself"),
    Case(changed("  rounds: 3", "  rounds: 3\n  <<: {on_failure: drop}"), "federation.<<", "no such key"),
    # unknown keys
    Case(["sed=1"], "sed", "'seed'"),
    Case(["federation.round=3"], "federation.round", "Valid: arrivals, clients_per_round"),
    Case(["local.learning_rate=0.1"], "local.learning_rate", "called `lr`"),
    Case(["adapter.rank=8"], "adapter.rank", "called `r`, and is given too"),
    Case(["adapter.lora_alpha=8"], "adapter.lora_alpha", "called `alpha`"),
    Case(["lr=0.1"], "lr", "`lr` belongs under `local`"),
    Case(["federation.seed=1"], "federation.seed", "at the top level"),
    Case(["federation.clients=4"], "federation.clients", "`clients` belongs under `data.partition`"),
    Case(["federation.every=4"], "federation.every", "under `evaluation` or under `checkpoints`"),
    Case(["dataset=x"], "dataset", "`dataset` belongs under `data`"),
    Case(["strategy=fedavg"], "strategy", "called `algorithm`, and is given too"),
    Case(["data.partition.alpha=0.1"], "data.partition.alpha", "belongs to kind dirichlet"),
    Case(["algorithm.mu=0.1"], "algorithm.mu", "fedavg has no options"),
    Case(["algorithm={name: fedprox, mhu: 0.1}"], "algorithm.mhu", "'mu'"),
    Case(changed("federation:\n  rounds: 3", "federation:\n  round: 3"), "federation.round", "'rounds'"),
    # missing keys
    Case(changed("name: first\n", ""), "name", "required, and missing"),
    Case(changed("  rounds: 3", "  on_failure: drop"), "federation.rounds", "Add `rounds: ...`"),
    Case(changed("federation:\n  rounds: 3\n", ""), "federation", "this section is required, and missing"),
    Case(changed("  source: sample:reviews\n", ""), "data.source", "required, and missing"),
    Case(changed("{kind: iid, clients: 4}", "iid"), "data.partition.clients", "Number of clients"),
    Case(changed("{kind: iid, clients: 4}", "{clients: 4}"), "data.partition.kind", "one of iid, dirichlet"),
    Case(changed("{kind: iid, clients: 4}", "{kind: dirichlet, clients: 4}"), "data.partition.alpha", "missing"),
    Case(changed(", task: classification}", "}"), "model.task", "required, and missing"),
    Case(["algorithm={mu: 0.1}"], "algorithm.name", "`algorithm: fedavg`"),
    Case(["federation.early_stopping={min_delta: 0.1}"], "federation.early_stopping.patience", "missing"),
    # wrong types and values
    Case(['seed="3"'], "seed", "Write the number without quotes: 3"),
    Case(["seed=-1"], "seed", "of at least 0"),
    Case(["seed=1.5"], "seed", "not a whole number"),
    Case(["federation.rounds=3.0"], "federation.rounds", "Write 3"),
    Case(["federation.rounds=0"], "federation.rounds", "of at least 1"),
    Case(["federation.rounds=true"], "federation.rounds", "not a whole number"),
    Case(["federation.rounds=1_000"], "federation.rounds", "without `_`"),
    Case(["federation.rounds=null"], "federation.rounds", "an empty value"),
    Case(["federation.rounds=[3]"], "federation.rounds", "without brackets"),
    Case(["local.lr=0"], "local.lr", "above 0"),
    Case(["local.lr=fast"], "local.lr", "'fast' is not a number"),
    Case(["local.lr=.inf"], "local.lr", "inf is not a number"),
    Case(["local.lr=.nan"], "local.lr", "nan is not a number"),
    Case(["adapter.dropout=1.0"], "adapter.dropout", "below 1"),
    Case(["data.held_out=1"], "data.held_out", "below 1"),
    Case(["data.max_length=4"], "data.max_length", "of at least 8"),
    Case(["tensorboard=yes"], "tensorboard", "Write true, without quotes"),
    Case(["tensorboard=off"], "tensorboard", "Write false, without quotes"),
    Case(["tensorboard=1"], "tensorboard", "true or false"),
    Case(["name=my run"], "name", "Write my-run"),
    Case(["name=7"], "name", "put it in quotes: '7'"),
    Case(['name=""'], "name", "is not text"),
    Case(["model.task=1"], "model.task", "not text"),
    Case(["local.optimizer=adamm"], "local.optimizer", "'adam'"),
    Case(["model.dtype=float16"], "model.dtype", "Valid: bf16, fp32"),
    Case(["federation.weighting=sample"], "federation.weighting.kind", "'samples'"),
    Case(["federation.weighting={column: shop}"], "federation.weighting.kind", "one of samples, tokens"),
    Case(["federation.weighting=episodes"], "federation.weighting.column", "required"),
    Case(["federation.weighting={kind: episodes, column: ''}"], "federation.weighting.column", "not empty"),
    Case(["federation.weighting={kind: adapted, column: shops}"], "federation.weighting.column", "'shop'"),
    Case(["federation.weighting={kind: adapted, column: shop, mu: -1}"], "federation.weighting.mu", "of at least 0"),
    Case(["federation.weighting=mien:weight"], "federation.weighting.function", "'mine:weight'"),
    Case(["federation.weighting={kind: function, function: w}"], "federation.weighting.function", "my_weights:w"),
    Case(["data.template=alpacca"], "data.template", "'alpaca'"),
    Case(["engine.group_size=aut"], "engine.group_size", "'auto'"),
    Case(["engine.group_size=0"], "engine.group_size", "whole number of at least 1"),
    Case(["local.betas=[0.9]"], "local.betas", "a list of 2 numbers"),
    Case(["local.betas=[0.9, 1.5]"], "local.betas[1]", "below 1"),
    Case(["local.betas=0.9"], "local.betas", "a list of 2 numbers"),
    Case(["adapter.modules_to_save=head"], "adapter.modules_to_save", "Write a list: [head]"),
    Case(["adapter.targets=3"], "adapter.targets", "text or a list"),
    Case(["data.where={shop: 1.5}"], "data.where.shop", "whole number"),
    Case(["data.fields={label: 3}"], "data.fields.label", "not text"),
    Case(["data.fields=[text]"], "data.fields", "a map of names to text"),
    Case(["federation.yardsticks=[locl]"], "federation.yardsticks[0]", "'local'"),
    Case(["algorithm={name: fedprox, mu: -1}"], "algorithm.mu", "of at least 0"),
    Case(['algorithm={name: fedprox, mu: "1"}'], "algorithm.mu", "without quotes"),
    Case(["algorithm=3"], "algorithm", "3 is not a map"),
    Case(["algorithm={name: 3}"], "algorithm.name", "3 is not the name"),
    # sections
    Case(["evaluation=null"], "evaluation", "this section is empty"),
    Case(["evaluation=3"], "evaluation", "3 is not a section"),
    Case(["federation.early_stopping=true"], "federation.early_stopping", "patience: ..."),
    Case(["data.partition=5"], "data.partition", "5 is not a section"),
    Case(["adapter=[lora]"], "adapter", "['lora'] is not a section"),
    Case(["adapter=lorra"], "adapter.kind", "'lora'"),
    Case(["engine=slurm"], "engine.kind", "Valid: local, ray, remote"),
    Case(["engine={kind: ray, adress: auto}"], "engine.adress", "'address'"),
    Case(["engine={kind: remote, round_deadline: 0}"], "engine.round_deadline", "above 0"),
    Case(["engine.workers=0"], "engine.workers", "at least 1"),
    Case(["data.partition={kind: dirichet, clients: 3}"], "data.partition.kind", "'dirichlet'"),
    Case(["data.partition={kind: 3, clients: 3}"], "data.partition.kind", "3 is not a kind of partition"),
    Case(["data.partition={kind: [iid], clients: 3}"], "data.partition.kind", "is not a kind of partition"),
    Case(["federation.arrivals=lognormall"], "federation.arrivals.kind", "'lognormal'"),
    Case(["federation.arrivals={sigma: 1.0}"], "federation.arrivals.kind", "missing"),
    Case(
        ["federation.arrivals={kind: constant, sigma: 1.0}"], "federation.arrivals.sigma", "belongs to kind lognormal"
    ),
    Case(["federation.arrivals=constant"], "federation.arrivals", "waits for all of its cohort"),
    Case(["federation.schedule=cosin"], "federation.schedule.kind", "'cosine'"),
    # overrides
    Case(["rounds"], "rounds", "key.sub=value"),
    Case(["=3"], "=3", "key.sub=value"),
    Case(["local..lr=3"], "local..lr=3", "key.sub=value"),
    Case(["local.lr="], "local.lr", "local.lr=null"),
    Case(["local.betas=[0.9"], "local.betas", "cannot be read"),
    Case(["name.first=x"], "name.first", "is a value, not a section"),
    # names
    Case(["algorithm=fedavgg"], "algorithm.name", "'fedavg'"),
    Case(["model.task=clasification"], "model.task", "'classification'"),
    Case(["model.path=sample:tinny"], "model.path", "'tiny'"),
    Case(["data.source=sample:review"], "data.source", "'reviews'"),
    Case(["data.source=sample:tiny"], "data.source", "is a model, not a dataset"),
    Case(["model.path=sample:reviews"], "model.path", "is a dataset, not a model"),
    Case(["model.path=Sample:tiny"], "model.path", "Write sample:tiny"),
    # places
    Case(["data.source=row.jsonl"], "data.source", "'rows.jsonl'"),
    Case(["data.source=sub/rows.jsonl"], "data.source", "does not exist"),
    Case(["data.source=empty.csv"], "data.source", "is empty"),
    Case(["data.source=notes.txt"], "data.source", "a .txt file is not read"),
    Case(["data.source=./folder"], "data.source", "no file or folder"),
    Case(["data.source=https://example.org/rows.csv"], "data.source", "Download it"),
    Case(["data.source=mine.py:rows"], "data.source", "mine:rows"),
    Case(["data.source=mnie:rows"], "data.source", "'mine:rows'"),
    Case(["data.source='mine:'"], "data.source", "not module:attribute"),
    Case(["model.path=./model"], "model.path", "no folder"),
    Case(["model.path=weights.safetensors"], "model.path", "Give the folder"),
    Case(["model.path=nowhere:build"], "model.path", "neither in"),
    Case(["model.revision=main"], "model.revision", "only a hub model"),
    Case(["data.partition={kind: given, file: client.json}"], "data.partition.file", "'clients.json'"),
    Case(["data.partition={kind: given, file: rows.jsonl}"], "data.partition.file", "neither a JSON nor"),
    Case(["data.partition={kind: given, file: clients.json, method: uniform}"], "data.partition.method", "no methods"),
    Case(["data.split=test"], "data.split", "only a hub name or a folder"),
    Case(["data.source=rows.jsonl", "data.split=test"], "data.split", "the source is rows.jsonl"),
    # columns of a packaged sample
    Case(["data.partition={kind: column, column: shops}"], "data.partition.column", "'shop'"),
    Case(["data.partition={kind: dirichlet, clients: 3, alpha: 1, label: lable}"], "data.partition.label", "'label'"),
    Case(["data.where={shopp: a}"], "data.where.shopp", "'shop'"),
    Case(["data.fields={text: txt}"], "data.fields.text", "'text'"),
    Case(["model.task=causal_lm", "data.fields={output: label}"], "data.fields", "reads the field 'instruction'"),
    # pairs that cannot be
    Case(["local.epochs=1"], "local.steps", "both steps and epochs"),
    Case(["local={lr: 0.1}"], "local", "how long a client trains"),
    Case(["local.momentum=0.9"], "local.momentum", "only sgd has it, and the optimizer is adamw"),
    Case(["local.nesterov=true"], "local.nesterov", "only sgd has it"),
    Case(["local.optimizer=sgd", "local.betas=[0.9, 0.99]"], "local.betas", "the optimizer is sgd"),
    Case(["local.optimizer=sgd", "local.eps=1e-6"], "local.eps", "the optimizer is sgd"),
    Case(["local.optimizer=sgd", "local.nesterov=true"], "local.nesterov", "nesterov needs momentum"),
    Case(["local.schedule={final: 0.1}"], "local.schedule.final", "no final factor"),
    Case(["federation.schedule={kind: constant, final: 0.1}"], "federation.schedule.final", "no final factor"),
    Case(["local.schedule={warmup: 6}"], "local.schedule.warmup", "do not fit in 5 steps"),
    Case(["federation.schedule={warmup: 4}"], "federation.schedule.warmup", "do not fit in 3 rounds"),
    Case(["federation.clients_per_round=5"], "federation.clients_per_round", "cannot be selected from 4"),
    Case(["adapter=full", "model.dtype=bf16"], "model.dtype", "what is learnt is fp32"),
    Case(["adapter=full", "local.grouping=grouped"], "local.grouping", "one batched pass"),
    Case(["adapter.targets=[]"], "adapter.targets", "no module gets an adapter"),
    Case(['adapter.targets=""'], "adapter.targets", "no module gets an adapter"),
    Case(['adapter.targets=["", q_proj]'], "adapter.targets", "a name in the list is empty"),
    Case(["adapter.targets=[q_proj, q_proj]"], "adapter.targets", "q_proj is given twice"),
    Case(['adapter.targets="*_proj"'], "adapter.targets", "not a regular expression"),
    Case(["adapter.targets=q_proj"], "adapter.targets", "Write [q_proj]"),
    Case(["adapter.targets=all_linear"], "adapter.targets", "Write all-linear"),
    Case(["adapter.targets=[a]", "adapter.modules_to_save=[a]"], "adapter.modules_to_save", "also get an adapter"),
    Case(['adapter.modules_to_save=[""]'], "adapter.modules_to_save", "a name in the list is empty"),
    Case(["federation.early_stopping={patience: 2}", "evaluation.every=0"], "federation.early_stopping", "every is 0"),
    Case(["federation.early_stopping={patience: 2}", "data.held_out=0"], "federation.early_stopping", "held_out is 0"),
    Case(["checkpoints={adapter: best, keep_best: false}"], "checkpoints.adapter", "keep_best is false"),
    Case(["checkpoints.adapter=best", "evaluation.every=0"], "checkpoints.adapter", "every is 0"),
    Case(["checkpoints.adapter=best", "data.held_out=0"], "checkpoints.adapter", "held_out is 0"),
    Case(["checkpoints.keep_best=true", "evaluation.every=0"], "checkpoints.keep_best", "no best round"),
    Case(["evaluation.metric=eval_accuracy", "data.held_out=0"], "evaluation.metric", "held_out is 0"),
    Case(["evaluation.clients_every=2", "data.validation=0"], "evaluation.clients_every", "validation is 0"),
    Case(["evaluation.metric=accuracy"], "evaluation.metric", "Write eval_accuracy"),
    Case(["evaluation.metric=eval_acuracy"], "evaluation.metric", "'eval_accuracy'"),
    Case(["federation.yardsticks=[local, local]"], "federation.yardsticks", "given twice"),
    Case(["data.template=alpaca"], "data.template", "makes no prompts"),
    Case(["data.fields={txt: text}"], "data.fields.txt", "'text'"),
    Case(["data.fields={shop: label}"], "data.fields.shop", "Write `label: shop`"),
    Case(["data.fields={text: text, text_pair: text}"], "data.fields.text_pair", "already the field 'text'"),
    Case(['data.fields={text: ""}'], "data.fields.text", "no column is given"),
    Case(["data.where={shop: []}"], "data.where.shop", "keeps no row"),
    Case(["data.limit=8"], "data.limit", "at least 9"),
    Case(["layers=top"], "layers.kind", "priority"),
    Case(["layers={kind: random, count: 0}"], "layers.count", "1"),
    Case(["layers=given"], "layers.layers", "required"),
    Case(["layers={kind: given, layers: []}"], "layers.layers", "[] is not a list"),
    Case(["layers={kind: given, layers: ['(']}"], "layers.layers", "not a regular expression"),
    Case(["layers={kind: given, layers: [1, 1]}"], "layers.layers", "given twice"),
    Case(["layers={kind: priority, top: 0, bottom: 0}"], "layers.top", "choose no layer"),
    Case(["layers={kind: priority, score: taylor}"], "layers.score", "relative"),
    Case(["layers={kind: priority, seen_by: held_out}", "data.held_out=0.0"], "layers.seen_by", "rows of its own"),
    Case(["layers={kind: priority, score: lora_l2}", "adapter={kind: full}"], "layers.score", "the adapter is full"),
    Case(["data.unseen_clients=0.9"], "data.unseen_clients", "none be left"),
    Case(["data.unseen_clients=0.25", "data.validation=0"], "data.unseen_clients", "validation is 0"),
    Case(["data.unseen_clients=1.0"], "data.unseen_clients", "below 1"),
    Case(["data.unseen_clients=0.5", "federation.clients_per_round=3"], "federation.clients_per_round", "at most 2"),
    Case(
        ["algorithm=local", "federation.yardsticks=[local]"], "federation.yardsticks", "the algorithm is local itself"
    ),
    Case(["data.partition={kind: given, file: clients.h5}"], "data.partition", "Add the name of one"),
    Case(["adapter={kind: full}", "model.dtype=bf16"], "model.dtype", "what is learnt is fp32"),
    # different ranks
    Case(["adapter.ranks=[]"], "adapter.ranks", "no rank is given"),
    Case(["adapter.ranks=[8, 8]"], "adapter.ranks", "adapter.r is 4"),
    Case(["adapter.ranks=[2, 4]"], "adapter.ranks", "no common mean"),
    Case(["adapter.ranks=[2, 4]", "algorithm=stateful"], "adapter.ranks", "Stateful would move the ranks"),
    Case(["layers=split", "algorithm=factors"], "layers.kind", "Factors needs every client's factors"),
    Case(["layers=random", "algorithm=choosy"], "layers", "Choosy chooses the layers itself"),
    Case(["layers=random", "algorithm=refactoring"], "layers", "Refactoring writes every factor anew"),
    Case(["layers=split", "algorithm=hasty"], "layers.kind", "Hasty waits for no whole cohort"),
    Case(
        ["data.partition={kind: given, file: clients.h5, method: a}", "data.held_out=0.2"],
        "data.held_out",
        "the test rows of clients.h5 are held out",
    ),
    Case(
        ["data.partition={kind: given, file: clients.h5, method: a}", "data.validation=0.2"],
        "data.validation",
        "each client's are its own evaluation's",
    ),
    Case(["evaluation.generate={rows: 4}"], "evaluation.generate", "no answer is generated"),
    Case(
        [
            "model.task=causal_lm",
            "data.fields={instruction: text, output: shop}",
            "evaluation.generate={rows: 4}",
            "data.held_out=0",
            "evaluation.metric=train_loss",
        ],
        "evaluation.generate",
        "answers are generated for held-out rows",
    ),
    Case(["adapter=bitfit", "model.dtype=bf16"], "model.dtype", "adapter bitfit learns"),
    Case(["adapter={kind: full}", "model.quantization=8bit"], "model.quantization", "cannot be learnt"),
    Case(["data.fields={text: text, label: [label, shop]}"], "data.fields.label", "one column's value"),
    Case(
        ["model.task=causal_lm", "data.fields={instruction: text, output: shop}", "data.labels={a: A}"],
        "data.labels",
        "causal_lm has no labels",
    ),
    Case(["data.prompt=x {text}"], "data.prompt", "makes no prompts"),
    # gradients along random directions
    Case(["local.gradient=central", "adapter.dropout=0.1"], "adapter.dropout", "without dropout"),
    Case(["local.gradient=central", "model.dropout=true"], "model.dropout", "without dropout"),
    Case(["local.gradient=jvp", "model.gradient_checkpointing=true"], "model.gradient_checkpointing", "no activations"),
    Case(
        ["local.gradient=jvp", "adapter.ranks=[2, 4]", "algorithm=factors"], "adapter.ranks", "random directions of jvp"
    ),
    Case(
        ["local.gradient={kind: central, upload: seeds}", "local.optimizer_state=keep"],
        "local.gradient.upload",
        "a client's own optimizer state",
    ),
    Case(
        ["local.gradient={kind: central, upload: seeds}", "algorithm=stateful"],
        "local.gradient.upload",
        "Stateful keeps a state on each client",
    ),
    Case(
        ["local.gradient={kind: central, guidance: complement, directions: 1}"],
        "local.gradient.directions",
        "2 or more",
    ),
    Case(
        ["local.gradient={kind: central, guidance: complement, pacing: {kind: schedule, directions: [1, 4]}}"],
        "local.gradient.pacing.directions",
        "2 or more",
    ),
    Case(
        ["local.gradient={kind: central, directions: 1, pacing: {kind: variance, cap: 1}}"],
        "local.gradient.pacing.cap",
        "no variance",
    ),
    Case(
        ["local.gradient={kind: central, directions: 9, pacing: {kind: snr, rho: 1.0, cap: 8}}"],
        "local.gradient.pacing.cap",
        "Set it to 9 or more",
    ),
    Case(
        ["local.gradient={kind: central, distribution: orthogonal, guidance: top_cosine}"],
        "local.gradient.distribution",
        "no longer be orthogonal",
    ),
    Case(
        ["local.gradient={kind: central, distribution: orthogonal, pacing: variance}"],
        "local.gradient.distribution",
        "orthogonal only within each",
    ),
    Case(
        ["local.gradient={kind: central, directions: 2, pacing: {kind: schedule, directions: [2]}}"],
        "local.gradient.directions",
        "the schedule says how many",
    ),
    Case(["data.min_rows=5", "data.partition={kind: quantity, clients: 3}"], "data.partition.min_rows", "5 or more"),
    Case(
        [
            "model.task=causal_lm",
            "data.fields={instruction: text, output: shop}",
            "data.partition={kind: dirichlet, clients: 3, alpha: 1}",
        ],
        "data.partition.label",
        "has no label field",
    ),
    Case(["federation.selection=pickyy"], "federation.selection.name", "'picky'"),
    Case(["federation.selection={shares: 0.1}"], "federation.selection.name", "`selection: oort`"),
    Case(
        ["federation.selection={name: picky, shares: 0.1}", "devices=alike", "federation.clients_per_round=2"],
        "federation.selection.shares",
        "'share'",
    ),
    Case(
        ["federation.selection=picky", "federation.clients_per_round=2"], "federation.selection", "devices: generated"
    ),
    Case(["federation.selection=picky", "devices=alike"], "federation.selection", "Set federation.clients_per_round"),
    Case(
        ["federation.selection=picky", "devices=alike", "federation.clients_per_round=2", "local.gradient=central"],
        "federation.selection",
        "losses of single samples",
    ),
    Case(
        ["algorithm=hasty", "federation.selection=picky", "devices=alike", "federation.clients_per_round=2"],
        "federation.selection",
        "draws those who are free uniformly",
    ),
    Case(["devices=phones"], "devices.kind", "generated"),
    Case(["devices={kind: generated, corelation: 0.5}"], "devices.corelation", "'correlation'"),
    Case(["devices={kind: generated, correlation: 2.0}"], "devices.correlation", "at most 1"),
    Case(["devices={kind: file, path: devices.parquet}"], "devices.path", "devices.parquet"),
    Case(
        ["devices=alike", "federation.arrivals=constant", "algorithm=hasty"],
        "federation.arrivals",
        "follows from their devices",
    ),
    Case(["federation.wait=all"], "federation.wait", "nobody is late"),
    Case(["devices=alike", "algorithm=hasty", "federation.wait=all"], "federation.wait", "asynchronous"),
    Case(["devices=alike", "federation.wait=overcommit"], "federation.wait", "none more can be asked"),
    Case(["devices=alike", "federation.wait={kind: quorum, updates: 5}"], "federation.wait.updates", "at most 4"),
    Case(["devices=alike", "federation.wait=deadline"], "federation.wait.seconds", "missing"),
]


if __name__ == "__main__":
    file = write_folder(Path(sys.argv[1]))
    refused = 0
    for case in CASES:
        file.write_text(case.written if isinstance(case.written, str) else BASE)
        try:
            load_fake(file, case.written if isinstance(case.written, list) else ())
        except FedloomError:
            refused += 1
    print(refused, *sorted({"torch", "transformers", "peft", "datasets", "numpy"} & set(sys.modules)))
