"""Arithmetic word problems with worked steps, made from templates by a seeded generator. Nobody wrote or checked them one by one."""

from collections.abc import Callable, Iterator
from random import Random

_NAMES = ("Ada", "Bilal", "Chiara", "Dmitri", "Emeka", "Farah", "Goro", "Hana", "Ines", "Jun", "Kofi", "Lena", "Mateo", "Noor", "Priya")
_THINGS = ("apples", "pencils", "postcards", "marbles", "notebooks", "stickers", "lemons", "tickets", "seashells", "candles", "buttons")
_PLACES = ("the market", "a school fair", "the library", "a village shop", "the harbour", "a bakery", "the station")
_MACHINES = ("printer", "press", "loom", "bottling machine", "robot", "mill")

Problem = tuple[str, list[str], int]  # question, steps, answer


def _shopping(rng: Random) -> Problem:
    name, thing, place = rng.choice(_NAMES), rng.choice(_THINGS), rng.choice(_PLACES)
    packs, each, price = rng.randint(2, 12), rng.randint(3, 15), rng.randint(2, 9)
    paid = rng.choice([amount for amount in (50, 100, 150, 200) if amount > packs * price])
    question = (
        f"At {place}, {name} buys {packs} packs of {each} {thing}. Each pack costs {price} coins and {name} pays with {paid} coins. "
        f"How many coins come back, and how many {thing} is that in all? Give the number of coins plus the number of {thing}."
    )
    cost, count = packs * price, packs * each
    steps = [
        f"{packs} packs at {price} coins cost {packs} * {price} = {cost} coins.",
        f"From {paid} coins {paid} - {cost} = {paid - cost} come back.",
        f"There are {packs} * {each} = {count} {thing}.",
        f"Together {paid - cost} + {count} = {paid - cost + count}.",
    ]
    return question, steps, paid - cost + count


def _sharing(rng: Random) -> Problem:
    name, thing, friends = rng.choice(_NAMES), rng.choice(_THINGS), rng.randint(3, 11)
    share, rest = rng.randint(4, 40), rng.randint(0, 2)
    total = share * friends + rest
    question = (
        f"{name} has {total} {thing} and gives each of {friends} friends the same number, as many as possible. "
        f"How many {thing} are left over?"
    )
    steps = [
        f"{total} divided by {friends} is {share}, because {share} * {friends} = {share * friends}.",
        f"What is left over is {total} - {share * friends} = {rest}.",
    ]
    return question, steps, rest


def _walking(rng: Random) -> Problem:
    name, speed, hours, back = rng.choice(_NAMES), rng.randint(3, 7), rng.randint(2, 6), rng.randint(1, 5)
    question = (
        f"{name} walks {hours} hours at {speed} km an hour, turns round and walks {back} km back. How many km from the start is {name} now?"
    )
    out = speed * hours
    return (
        question,
        [f"On the way out: {speed} * {hours} = {out} km.", f"After turning round: {out} - {back} = {out - back} km."],
        out - back,
    )


def _production(rng: Random) -> Problem:
    machine, rate, hours, faulty = rng.choice(_MACHINES), rng.randint(12, 90), rng.randint(3, 12), rng.randint(2, 9)
    made, broken = rate * hours, faulty * hours
    question = (
        f"A {machine} makes {rate} parts an hour, and {faulty} of every hour's parts are faulty. It runs for {hours} hours. "
        "How many good parts does it make?"
    )
    steps = [
        f"In {hours} hours it makes {rate} * {hours} = {made} parts.",
        f"Of these {faulty} * {hours} = {broken} are faulty.",
        f"Good parts: {made} - {broken} = {made - broken}.",
    ]
    return question, steps, made - broken


def _percentage(rng: Random) -> Problem:
    place, visitors, percent = rng.choice(_PLACES), 20 * rng.randint(5, 90), 5 * rng.randint(1, 19)
    part = visitors * percent // 100
    question = f"{visitors} people come to {place} on a Saturday, {percent} percent of them before noon. How many come after noon?"
    steps = [
        f"{percent} percent of {visitors} is {visitors} * {percent} / 100 = {part}.",
        f"After noon come {visitors} - {part} = {visitors - part}.",
    ]
    return question, steps, visitors - part


def _rectangle(rng: Random) -> Problem:
    name, width, length, path = rng.choice(_NAMES), rng.randint(3, 30), rng.randint(5, 60), rng.randint(1, 3)
    outer, inner = (width + 2 * path) * (length + 2 * path), width * length
    question = (
        f"{name}'s garden is {width} metres wide and {length} metres long. A path {path} metres wide runs all round it, outside. "
        "What is the area of the path in square metres?"
    )
    steps = [
        f"The garden has {width} * {length} = {inner} square metres.",
        f"With the path it measures {width} + 2 * {path} = {width + 2 * path} by {length} + 2 * {path} = {length + 2 * path} metres.",
        f"That is {width + 2 * path} * {length + 2 * path} = {outer} square metres.",
        f"The path alone: {outer} - {inner} = {outer - inner}.",
    ]
    return question, steps, outer - inner


def _ages(rng: Random) -> Problem:
    (older, younger), gap, times = rng.sample(_NAMES, 2), rng.randint(3, 9), rng.randint(2, 5)
    young = gap * rng.randint(1, 6)
    old = times * young
    question = f"{older} is {times} times as old as {younger}, who is {young}. How old were they together {gap - 1} years ago?"
    steps = [
        f"{older} is {times} * {young} = {old}.",
        f"{gap - 1} years ago they were {old} - {gap - 1} = {old - gap + 1} and {young} - {gap - 1} = {young - gap + 1}.",
        f"Together: {old - gap + 1} + {young - gap + 1} = {old + young - 2 * gap + 2}.",
    ]
    return question, steps, old + young - 2 * gap + 2


def _mean(rng: Random) -> Problem:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    values = [rng.randint(5, 60) for _ in range(rng.randint(3, 5))]
    values.append(-sum(values) % (len(values) + 1) + (len(values) + 1) * rng.randint(1, 8))  # so that the mean is whole
    days, total = len(values), sum(values)
    question = f"On {days} days {name} counts {', '.join(map(str, values))} {thing}. How many is that a day on average?"
    steps = [
        f"The sum is {' + '.join(map(str, values))} = {total}.",
        f"Over {days} days that is {total} / {days} = {total // days} a day.",
    ]
    return question, steps, total // days


def _saving(rng: Random) -> Problem:
    name, start, weekly, weeks = rng.choice(_NAMES), rng.randint(5, 80), rng.randint(3, 25), rng.randint(4, 30)
    word, parts = rng.choice((("half", 2), ("a third", 3), ("a quarter", 4), ("a fifth", 5)))
    saved = start + weekly * weeks
    spent = saved // parts
    question = (
        f"{name} has {start} coins, saves {weekly} coins a week for {weeks} weeks and then spends {word} of it, "
        "rounded down to whole coins. How many coins are left?"
    )
    steps = [
        f"Saved in {weeks} weeks: {weekly} * {weeks} = {weekly * weeks}.",
        f"With the first {start} that is {start} + {weekly * weeks} = {saved}.",
        f"Spent: {saved} / {parts}, rounded down, is {spent}.",
        f"Left: {saved} - {spent} = {saved - spent}.",
    ]
    return question, steps, saved - spent


def _sequence(rng: Random) -> Problem:
    start, step, nth = rng.randint(1, 50), rng.randint(2, 19), rng.randint(6, 40)
    first = ", ".join(str(start + step * index) for index in range(4))
    answer = start + step * (nth - 1)
    question = f"A sequence begins {first} and goes on in the same way. Which number is in place {nth}?"
    steps = [
        f"Each number is {step} more than the one before it.",
        f"Place {nth} is {nth - 1} steps after the first: {step} * {nth - 1} = {step * (nth - 1)}.",
        f"So it is {start} + {step * (nth - 1)} = {answer}.",
    ]
    return question, steps, answer


_TEMPLATES: tuple[Callable[[Random], Problem], ...] = (
    _shopping,
    _sharing,
    _walking,
    _production,
    _percentage,
    _rectangle,
    _ages,
    _mean,
    _saving,
    _sequence,
)


def problems(seed: int) -> Iterator[dict[str, str]]:
    """An endless stream of different problems: `id`, `question`, `answer` (steps, then `#### number` as GSM8K ends), `template`."""
    rng, seen = Random(f"{seed}/maths"), set[str]()
    while True:
        template = rng.choice(_TEMPLATES)
        question, steps, answer = template(rng)
        if question not in seen:
            seen.add(question)
            text = "\n".join([*steps, f"#### {answer}"])
            yield {"id": f"arithmetic-{len(seen):06d}", "question": question, "answer": text, "template": template.__name__.strip("_")}
