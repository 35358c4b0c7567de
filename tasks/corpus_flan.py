"""Instructions made from functions' signatures and documentation: questions whose answers stand in the source, in six fixed forms."""

from collections.abc import Sequence
from random import Random

from tasks.corpus_harvest import Docstring

_LONGEST = 600  # characters of documentation in a question or an answer


def instruction(item: Docstring, others: Sequence[Docstring], seed: int) -> tuple[str, str]:
    """(task, text) for one documented function: the question, a blank line, the answer. `others` gives three wrong choices."""
    rng = Random(f"{seed}/flan/{item.key}")
    makers = [_describe, _name, _module, _choose]
    if item.positional:
        makers += [_parameters, _has_parameter]
    return rng.choice(makers)(item, others, rng)


def _summary(item: Docstring) -> str:
    """Its first paragraph, on one line."""
    return " ".join(item.text.split("\n\n")[0].split())[:_LONGEST]


def _kind(item: Docstring) -> str:
    return "class" if item.is_class else "function"


def _describe(item: Docstring, others: Sequence[Docstring], rng: Random) -> tuple[str, str]:
    asked = rng.choice(("What does the {kind} `{sig}` of `{module}` do?", "Describe the {kind} `{sig}` from the module `{module}`."))
    return "describe", asked.format(kind=_kind(item), sig=item.signature, module=item.module) + "\n\n" + item.text[:_LONGEST]


def _name(item: Docstring, others: Sequence[Docstring], rng: Random) -> tuple[str, str]:
    return (
        "name",
        f'A {_kind(item)} in the module `{item.module}` is documented as follows: "{_summary(item)}" What is it called?\n\n{item.name}',
    )


def _module(item: Docstring, others: Sequence[Docstring], rng: Random) -> tuple[str, str]:
    return "module", f'In which module is the {_kind(item)} `{item.name}` with this documentation: "{_summary(item)}"\n\n{item.module}'


def _choose(item: Docstring, others: Sequence[Docstring], rng: Random) -> tuple[str, str]:
    choices = [item, *others]
    rng.shuffle(choices)
    listed = "\n".join(f"{letter}. {choice.module}.{choice.name}" for letter, choice in zip("ABCD", choices, strict=False))
    question = f"Which of these does the sentence describe?\n{_summary(item)}\n{listed}\nAnswer with one letter."
    return "choose", f"{question}\n\n{'ABCD'[choices.index(item)]}"


def _parameters(item: Docstring, others: Sequence[Docstring], rng: Random) -> tuple[str, str]:
    listed = "\n".join(f"{number}. {name}" for number, name in enumerate(item.positional, 1))
    return "parameters", f"List the positional parameters of `{item.signature}` in order, without `self`.\n\n{listed}"


def _has_parameter(item: Docstring, others: Sequence[Docstring], rng: Random) -> tuple[str, str]:
    name = rng.choice([*item.parameters, "timeout", "encoding", "strict", "key", "default"])
    answer = "yes" if name in item.parameters else "no"
    return "has-parameter", f"{_summary(item)}\nDoes `{item.signature}` name a parameter `{name}`? Answer yes or no.\n\n{answer}"
