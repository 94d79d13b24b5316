"""Prompts from templates: name copying, indirect objects, agreement, key-value recall."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitkeep.circuits import did_you_mean
from circuitkeep.probes.base import Effect, Probe, ProbeBatch, ProbeContext, Split
from circuitkeep.probes.fillers import Fillers
from circuitkeep.probes.prompts import (
    Attention,
    Prompt,
    TokenizedPrompt,
    fill,
    placeholders,
    tokenize,
)
from circuitkeep.probes.rows import check_request, content_mask, pad_rows, partition
from circuitkeep.probes.specs import check_keys, read_attention, read_effect, read_texts
from circuitkeep.probes.targets import TEXT_LABELS, text_targets


@dataclass(frozen=True)
class Templates(Probe):
    """Prompts such as ``" A child named {name} came. They called {name}"`` that end in an answer.

    The answer is the last placeholder, and part of the prompt: each of its tokens is asked for
    at the position before. The corrupted prompt holds another filler wherever the answer's
    stood before (and in what is drawn together with it), and asks for the same answer.

    Attributes:
        templates: Texts with ``{placeholders}``; each ends with ``{answer}``.
        fillers: The words of each placeholder; see `circuitkeep.probes.fillers.Fillers`.
        answer: The placeholder to predict.
        distractor: The placeholder whose filler is the wrong answer. The only answer of a prompt
            is then the first token in which the two differ.
        targets: Per role ``{from: place, to: place}``, see `circuitkeep.probes.prompts.Place`;
            ``align: span`` attends to all tokens of a filler, ``align: token`` to the matching
            one. A role may take the name of a text label, and replaces it. ``writes: for`` (or
            ``against``) the answer, or ``backs_up: role``, say what else makes a head one of the
            role: see `circuitkeep.probes.base.Effect`.
        held_out: ``{templates: [...], fillers: {...}}``. What is not given is divided by a stable
            hash, a third held out.
        held_out_axes: "both", or "templates" or "fillers" alone; held-out rows then use the train
            part of the other.
    """

    templates: Sequence[str]
    fillers: Mapping[str, Any] = field(hash=False)
    answer: str
    distractor: str | None = None
    targets: Mapping[str, Any] = field(default_factory=dict, hash=False)
    held_out: Mapping[str, Any] | None = field(default=None, hash=False)
    held_out_axes: str = "both"

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", read_texts("templates", self.templates))
        axes = ("both", "templates", "fillers")
        if self.held_out_axes not in axes:
            raise ValueError(
                f"unknown held_out_axes {self.held_out_axes!r}"
                + did_you_mean(str(self.held_out_axes), axes)
            )
        held_out = self.held_out or {}
        check_keys("held_out", held_out, ("templates", "fillers"))
        if not isinstance(held_out.get("fillers", {}), Mapping):
            raise ValueError(f"held_out fillers must be a mapping, got {held_out['fillers']!r}")
        names = self._fillers.names
        for role, name in (("answer", self.answer), ("distractor", self.distractor)):
            if name is not None and name not in names:
                raise ValueError(f"the {role} {name!r} has no fillers" + did_you_mean(name, names))
        if self.distractor == self.answer:
            raise ValueError(f"the distractor is the answer, {self.answer!r}")
        _ = self._roles, self._effects  # which checks them
        used = {self.answer, self.distractor}
        for split in ("train", "held_out"):
            for template in self._templates[split]:
                self._check_template(template)
                used |= set(placeholders(template))
        for name in names:
            if name not in used:
                raise ValueError(
                    f"no template holds the placeholder {name!r}"
                    + did_you_mean(name, used - {None})
                )
        for split in ("train", "held_out"):
            if not self._templates[self._axis("templates", split)]:
                raise ValueError(
                    "one template cannot be divided between the splits; give at least two, or "
                    "held_out: {templates: [...]}, or held_out_axes: fillers"
                )
            self._fillers.check(self.answer, self._axis("fillers", split))

    @property
    def labels(self) -> tuple[str, ...]:
        """The declared roles, previous-token, duplicate-token and induction."""
        return tuple(dict.fromkeys((*self.targets, *TEXT_LABELS)))

    @property
    def behaviours(self) -> tuple[str, ...]:
        """Accuracy, the advantage of the context and, with a distractor, the logit difference."""
        difference = () if self.distractor is None else ("logit_difference",)
        return ("accuracy", "advantage_nats", *difference)

    @property
    def effects(self) -> Mapping[str, Effect]:
        """What `targets` say of them."""
        return self._effects

    def batch(self, context: ProbeContext, split: Split, rows: int, seed: int) -> ProbeBatch:
        """See `Probe.batch`.

        Raises:
            ValueError: If there is no tokenizer that tells offsets, a prompt is too long, an
                answer has no token of its own, or a role has no target in a prompt.
        """
        check_request(split, rows)
        rng = random.Random(seed)
        clean, corrupted, wrong, family = [], [], [], []
        templates = self._templates[self._axis("templates", split)]
        for _ in range(rows):
            template = rng.choice(templates)
            family.append(templates.index(template))
            words, others = self._fillers.draw(rng, self.answer, self._axis("fillers", split))
            last = len(placeholders(template)) - 1
            clean.append(fill(template, lambda name, _, w=words: w[name]))
            corrupted.append(_with_answer(template, others, words[self.answer], last))
            if self.distractor is not None:
                wrong.append(_with_answer(template, words, words[self.distractor], last))
        prompts = tokenize(clean, context)
        twins = tokenize(corrupted, context)
        asked = [range(p.answer.stop - p.answer.start) for p in prompts]
        distractor = None
        if self.distractor is not None:
            rivals = tokenize(wrong, context)
            pairs = [_first_difference(p, r) for p, r in zip(prompts, rivals, strict=True)]
            asked = [range(index, index + 1) for index, _ in pairs]
            distractor = torch.tensor([token for _, token in pairs])
        for prompt, twin, indices in zip(prompts, twins, asked, strict=True):
            if _ending(prompt, indices.start) != _ending(twin, indices.start):
                raise ValueError(
                    f"the answer of {prompt.template!r} is tokenized otherwise after another "
                    "filler; put a blank before the answer"
                )
        tokens, mask = pad_rows([prompt.tokens for prompt in prompts])
        targets = text_targets(tokens, content_mask(tokens, mask, context))
        targets |= {role: _target(role, self._roles[role], prompts, mask) for role in self._roles}
        batch = _asking(prompts, asked)
        twin = _asking(twins, asked)
        return ProbeBatch(
            tokens,
            mask,
            targets,
            batch[0],
            batch[1],
            batch[2],
            distractor,
            corrupted=ProbeBatch(*pad_rows([t.tokens for t in twins]), {}, *twin),
            family=torch.tensor(family),
        )

    @cached_property
    def _fillers(self) -> Fillers:
        return Fillers(self.fillers, (self.held_out or {}).get("fillers"))

    @cached_property
    def _templates(self) -> dict[Split, tuple[str, ...]]:
        templates = read_texts("templates", self.templates)
        if "templates" not in (self.held_out or {}):
            return partition(templates, lambda text: text)
        held_out = read_texts("held_out templates", (self.held_out or {})["templates"])
        both = set(templates) & set(held_out)
        if both:
            raise ValueError(f"the template {min(both)!r} is in both splits")
        return {"train": templates, "held_out": held_out}

    @cached_property
    def _roles(self) -> dict[str, Attention]:
        return {str(role): read_attention(str(role), spec) for role, spec in self.targets.items()}

    @cached_property
    def _effects(self) -> dict[str, Effect]:
        found = {str(role): read_effect(str(role), spec) for role, spec in self.targets.items()}
        declared = {role: effect for role, effect in found.items() if effect is not None}
        for role, effect in declared.items():
            if effect.backs_up is not None and effect.backs_up not in set(self.targets) - {role}:
                raise ValueError(
                    f"role {role!r} backs up {effect.backs_up!r}, which is no other role"
                    + did_you_mean(effect.backs_up, [str(r) for r in self.targets if r != role])
                )
        return declared

    def _axis(self, axis: str, split: Split) -> Split:
        return split if self.held_out_axes in ("both", axis) else "train"

    def _check_template(self, template: str) -> None:
        names = placeholders(template)
        for name in names:
            if name not in self._fillers.names:
                raise ValueError(
                    f"the placeholder {name!r} of {template!r} has no fillers"
                    + did_you_mean(name, self._fillers.names)
                )
        if not template.endswith("{" + self.answer + "}"):
            raise ValueError(f"the template {template!r} must end with '{{{self.answer}}}'")
        if not set(names[:-1]) & set(self._fillers.partners(self.answer)):
            raise ValueError(
                f"the answer {self.answer!r} stands nowhere before in {template!r}, so no context "
                "could support it"
            )
        for role, attention in self._roles.items():
            for place in (attention.from_, attention.to):
                if place.name not in ("answer", "end", *names):
                    raise ValueError(
                        f"role {role!r}: {template!r} has no placeholder {place.name!r}"
                        + did_you_mean(place.name, ("answer", "end", *dict.fromkeys(names)))
                    )
                if place.number is not None and place.number >= names.count(place.name):
                    raise ValueError(
                        f"role {role!r}: {template!r} has no {place.text!r}; {place.name!r} stands "
                        f"there {names.count(place.name)} times, counted from #0"
                    )


def _with_answer(template: str, words: Mapping[str, str], answer: str, last: int) -> Prompt:
    """The template filled with `words`, but for its last placeholder."""
    return fill(template, lambda name, position: answer if position == last else words[name])


def _ending(prompt: TokenizedPrompt, index: int) -> tuple[int, ...]:
    """The tokens from the answer's token `index` on."""
    return prompt.tokens[prompt.answer.start + index :]


def _first_difference(prompt: TokenizedPrompt, rival: TokenizedPrompt) -> tuple[int, int]:
    """Which token of the answer the distractor has otherwise, and the distractor's token there.

    It is -1 where a blank token before the answer is merged into the distractor's first token:
    that is where the two part.
    """
    for position, (token, other) in enumerate(zip(prompt.tokens, rival.tokens, strict=False)):
        if token != other:
            return position - prompt.answer.start, other
    raise ValueError(
        f"in {prompt.template!r} the tokens of answer and distractor begin alike and one ends "
        "there, so no token tells them apart; choose other fillers"
    )


def _asking(
    prompts: Sequence[TokenizedPrompt], asked: Sequence[range]
) -> tuple[Tensor, Tensor, Tensor]:
    """Row, position and token of the answer tokens `asked` of each prompt."""
    entries = [
        (row, prompt.answer.start + index - 1, prompt.tokens[prompt.answer.start + index])
        for row, (prompt, indices) in enumerate(zip(prompts, asked, strict=True))
        for index in indices
    ]
    row, position, token = torch.tensor(entries).unbind(dim=1)
    return row, position, token


def _target(
    role: str,
    attention: Attention,
    prompts: Sequence[TokenizedPrompt],
    mask: Bool[Tensor, "batch pos"],
) -> Bool[Tensor, "batch pos pos"]:
    target = torch.zeros(*mask.shape, mask.shape[1], dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        pairs = attention.pairs(prompt)
        if not pairs:
            raise ValueError(
                f"role {role!r}: in {prompt.template!r} no key of {attention.to.text!r} stands "
                f"at or before a query of {attention.from_.text!r}"
            )
        for query, key in pairs:
            target[row, query, key] = True
    return target
