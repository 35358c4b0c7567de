"""What a recipe says of synthetic maths (report, section 4.2.1): texts that are made up, or made from others."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Operation = Literal["add", "subtract", "multiply", "divide"]


class Arithmetic(BaseModel):
    """Calculations that a generator makes up."""

    model_config = ConfigDict(extra="forbid")
    documents: int = Field(default=100_000, ge=1, description="How many; more of them hold the fewer.", json_schema_extra={"position": 0})
    seed: int = Field(default=0, description="Seed of the numbers and prompts.", json_schema_extra={"position": 1})
    max_digits: int = Field(
        default=4,
        ge=1,
        le=9,
        description="Digits of the longest operand (of a division: of divisor and result).",
        json_schema_extra={"position": 2},
    )
    operations: list[Operation] = Field(
        default=["add", "subtract", "multiply", "divide"],
        min_length=1,
        description="What is calculated, each as often; a division comes out even.",
        json_schema_extra={"position": 3},
    )

    @field_validator("operations")
    @classmethod
    def _each_once(cls, value: list[Operation]) -> list[Operation]:
        twice = [name for name in value if value.count(name) > 1]
        if twice:
            raise ValueError(f"the operation {twice[0]} stands twice")
        return value


class ReplaceNumbers(BaseModel):
    """GSM8K's problems with other numbers, the answer computed anew by the solution's own steps."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["replace_numbers"] = Field(description="Other numbers in GSM8K's problems.", json_schema_extra={"position": 0})
    question: str = Field(default="question", min_length=1, description="Dotted path of the question.", json_schema_extra={"position": 1})
    answer: str = Field(
        default="answer",
        min_length=1,
        description="Dotted path of the solution, with steps such as <<48/2=24>> and a last line #### 72.",
        json_schema_extra={"position": 2},
    )
    variants: int = Field(
        default=1, ge=1, le=1000, description="Problems to make of each; more hold the fewer.", json_schema_extra={"position": 3}
    )
    seed: int = Field(default=0, description="Seed of the new numbers.", json_schema_extra={"position": 4})

    def paths(self) -> tuple[str, str]:
        return self.question, self.answer


class AnnotatePrograms(BaseModel):
    """TinyGSM's programs, those that are only assignments, with the value of each in a comment."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["annotate_programs"] = Field(description="Values beside TinyGSM's programs.", json_schema_extra={"position": 0})
    question: str = Field(default="question", min_length=1, description="Dotted path of the question.", json_schema_extra={"position": 1})
    program: str = Field(default="code", min_length=1, description="Dotted path of the Python program.", json_schema_extra={"position": 2})

    def paths(self) -> tuple[str, str]:
        return self.question, self.program


Synthetic = Annotated[ReplaceNumbers | AnnotatePrograms, Field(discriminator="type")]
