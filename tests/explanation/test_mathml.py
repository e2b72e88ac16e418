"""The formula lines as MathML: the same lines as in the text, read back to the same numbers, and nothing but MathML."""

from __future__ import annotations

import ast
import hashlib
import re
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import formulas
import pellucid
from explaining import quietly
from pellucid.explanation import examples
from pellucid.explanation.lines import Lines
from pellucid.explanation.mathml import block, inline
from pellucid.explanation.paper import Paper, letter
from pellucid.explanation.pieces import Name, Piece, plain
from pellucid.explanation.report import Values
from pellucid.nn.recurrence.cell import Cell
from pellucid.nn.rows.row_formula import Layer

CORE = set("math mrow mi mo mn mtext mspace msub msup msubsup mfrac msqrt mover".split())
ATTRIBUTES = set("data-symbol display mathvariant stretchy lspace rspace accent width".split())
APPLIED, TIMES = "\N{FUNCTION APPLICATION}", "\N{INVISIBLE TIMES}"


def parsed(mathml: str) -> ElementTree.Element:
    """Read MathML back, which must be well-formed and made of what MathML Core has."""
    math = ElementTree.fromstring(mathml)
    assert math.tag == "math"
    for element in math.iter():
        assert element.tag in CORE
        assert set(element.attrib) <= ATTRIBUTES
        assert not (element.tail or "").strip()
        arity = {"msub": 2, "msup": 2, "mfrac": 2, "mover": 2, "msubsup": 3, "msqrt": 1}.get(element.tag)
        assert arity is None or len(element) == arity, element.tag
    return math


def characters(text: str) -> str:
    """Write a line, or what its MathML shows, as its characters alone.

    Away fall white space, parentheses, commas, what is invisible, and the signs that MathML draws: the bar, the root,
    the power, the hat, the underscore before what stands low. What stands high or low comes down, an index before an
    exponent, and the parts of a name are spelled as letters.
    """
    text = re.sub("²(ₜ(?:₋₁)?)", r"\1²", text)
    text = re.sub(r"[^\W\d]\w*", lambda word: "".join(map(letter, word[0].split("_"))), text)
    return re.sub(rf"[\s(),/√^_{APPLIED}{TIMES}\N{{COMBINING CIRCUMFLEX ACCENT}}]", "", plain(text)).replace("−", "-")


def compare(mathml: str, text: str) -> ElementTree.Element:
    math = parsed(mathml)
    assert characters("".join(math.itertext())) == characters(text)
    return math


def symbols_in(math: ElementTree.Element) -> set[str]:
    return {element.attrib["data-symbol"] for element in math.iter() if "data-symbol" in element.attrib}


def written(code: str, now: tuple[str, ...] = (), before: tuple[str, ...] = ()) -> Piece:
    """Write an expression in whose names are those of this step and of the step before."""
    node = ast.parse(code, mode="eval").body
    for name in (n for n in ast.walk(node) if isinstance(n, ast.Name)):
        name.moment = "now" if name.id in now else "before" if name.id in before else ""
    return Paper(modules={"torch", "F", "math"}, numbers={"tau", "eps"}).expression(node)


# -- every formula --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", examples.names())
def test_every_formula_is_drawn(name: str):
    report = quietly(name, steps=1)
    assert len(report.mathml) == len(report.formula) > 0
    drawn: set[str] = set()
    for mathml, line in zip(report.mathml, report.formula, strict=True):
        math = compare(mathml, line)
        assert math.attrib == {"display": "block"}
        drawn |= symbols_in(math)
    text = re.sub("[ₜ₋₁]", "", "\n".join(report.formula))
    for row in report.symbols:
        if re.search(rf"(?<!\w){re.escape(row.name)}(?![\w(])", text):
            assert row.name in drawn
    for part in (part for step in report.steps for part in step.parts if isinstance(part, Values)):
        if part.mathml:
            assert not compare(part.mathml, part.name).attrib
        else:
            assert "drop" in name, part.name  # "mask 1", "mean of 1,000 masks"


OWN = {name: value for name, value in vars(formulas).items() if isinstance(value, (Cell, Layer))}


@pytest.mark.parametrize("name", OWN)
def test_formulas_of_one_s_own_are_drawn(name: str):
    source = OWN[name].source
    lines = Lines(source.function, [s.name for s in source.inputs], [s.name for s in source.states]).on_paper()
    drawn: set[str] = set()
    for line in lines:
        drawn |= symbols_in(compare(block(line), str(line)))
    called = {n.func.id for n in ast.walk(source.tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    used = {n.id for n in ast.walk(source.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    for symbol in source.symbols:
        if symbol.name in used - called and symbol.name != "size":
            assert letter(symbol.name) in drawn
    assert lines


# -- single pieces --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "mathml"),
    [
        ("x", '<mi data-symbol="x">x</mi>'),
        ("U", '<mi data-symbol="U">U</mi>'),
        ("new_c", '<mi data-symbol="new_c">new_c</mi>'),
        ("log_tau", '<mi data-symbol="log_tau">log_tau</mi>'),  # not a logarithm to the base τ
        ("_x", '<mi data-symbol="_x">_x</mi>'),
        ("x_", '<mi data-symbol="x_">x_</mi>'),
        ("gamma", '<mi data-symbol="γ">γ</mi>'),
        ("W_n", '<msub data-symbol="W_n"><mi>W</mi><mi>n</mi></msub>'),
        ("gamma_xn", '<msub data-symbol="gamma_xn"><mi>γ</mi><mi>xn</mi></msub>'),
        ("beta2", '<msub data-symbol="β₂"><mi>β</mi><mn>2</mn></msub>'),
        ("var", '<msup data-symbol="σ²"><mi>σ</mi><mn>2</mn></msup>'),
        ("x_hat", '<mover accent="true" data-symbol="x̂"><mi>x</mi><mo stretchy="false">^</mo></mover>'),
        ("now", '<msub data-symbol="now"><mi>now</mi><mi>t</mi></msub>'),
        ("h", '<msub data-symbol="h"><mi>h</mi><mrow><mi>t</mi><mo>−</mo><mn>1</mn></mrow></msub>'),
        ("r_x", '<msub data-symbol="r_x"><mi>r</mi><mrow><mi>x</mi><mo>,</mo><mi>t</mi></mrow></msub>'),
        ("a / b", '<mfrac><mi data-symbol="a">a</mi><mi data-symbol="b">b</mi></mfrac>'),
        ("torch.sqrt(a)", '<msqrt><mi data-symbol="a">a</mi></msqrt>'),
        ("a ** 2", '<msup><mi data-symbol="a">a</mi><mn>2</mn></msup>'),
        ("a.T", '<msup><mi data-symbol="a">a</mi><mi mathvariant="normal">T</mi></msup>'),
        ("math.inf", "<mi>inf</mi>"),
        ("1e-05", "<mn>1e-05</mn>"),
        ("True", "<mtext>True</mtext>"),
    ],
)
def test_one_element(code: str, mathml: str):
    assert inline(written(code, now=("now", "r_x"), before=("h",))) == f"<math>{mathml}</math>"


def test_the_index_of_a_worked_step_is_a_number():
    assert inline(Paper(now="12").name("h", "now")) == (
        '<math><msub data-symbol="h"><mi>h</mi><mn>12</mn></msub></math>'
    )
    assert inline(Paper(now="3").name("var", "now")) == (
        '<math><msubsup data-symbol="σ²"><mi>σ</mi><mn>3</mn><mn>2</mn></msubsup></math>'
    )


def shown(code: str) -> str:
    """Write what MathML shows, a fraction in braces and a power with its sign."""

    def of(element: ElementTree.Element) -> str:
        parts = [of(child) for child in element]
        frames = {"mfrac": "{%s}/{%s}", "msqrt": "√{%s}", "msup": "%s^{%s}"}
        if element.tag in frames and "data-symbol" not in element.attrib:
            return frames[element.tag] % tuple(parts)
        return element.attrib.get("data-symbol") or (element.text or "") + "".join(parts)

    return of(parsed(inline(written(code)))).replace(APPLIED, "").replace(TIMES, " ")


@pytest.mark.parametrize(
    ("code", "drawn"),
    [
        ("(a - b) / (c + d)", "{a−b}/{c+d}"),
        ("(a - b) * torch.rsqrt(v)", "(a−b)⊙{1}/{√{v}}"),  # text needs (1 / √(v))
        ("(a / b) ** 2", "({a}/{b})^{2}"),
        ("(a / b) @ U", "{a}/{b} U"),
        ("(a / b)[0]", "({a}/{b})[0]"),
        ("a / b / c", "{{a}/{b}}/{c}"),
        ("a / (b / c)", "{a}/{{b}/{c}}"),
        ("(a + b) @ U", "(a+b) U"),
        ("a ** (b + c)", "a^{b+c}"),
        ("a ** -1", "a^{−1}"),
        ("(a ** b) ** c", "(a^{b})^{c}"),
        ("var ** 2", "(σ²)^{2}"),  # and not σ to the 22
        ("a.T ** 2", "(a^{T})^{2}"),
        ("(a, b)", "(a,b)"),
        ("(a, b) / 2", "{(a,b)}/{2}"),  # a pair keeps its parentheses
        ("abs(a - b)", "|a−b|"),
        ("a if b < c else d", "aifb<celsed"),
        ("z[:, n:]", "z[:,\N{NO-BREAK SPACE}n:]"),
    ],
)
def test_parentheses_stand_where_the_drawing_needs_them(code: str, drawn: str):
    assert shown(code) == drawn


def test_fences_grow_with_fractions_only():
    assert inline(written("tanh(x_t)")).count('stretchy="false"') == 2
    assert 'stretchy="false"' not in inline(written("tanh(a / b)"))


def test_lines_without_mathematics_are_text_with_their_indentation():
    def branching(x, n, gamma):
        for _ in range(n):
            x = x / gamma
        if n > 2 and gamma is not None:
            x.clamp_(n)
        else:
            x = -x
        return x

    lines = [parsed(block(line))[0] for line in Lines(branching).on_paper()]
    texts = ["".join(line.itertext()).replace("\N{NO-BREAK SPACE}", " ") for line in lines]
    branch = ["if n > 2 and gamma is not None:", "x.clamp_(n)", "else:", "x=−x"]
    assert texts == ["for _ in range(n):", "x=xγ", *branch, "y=x"]
    for line, text in zip(lines, texts, strict=True):
        if text[-1] == ":":
            assert {element.tag for element in line.iter()} <= {"mrow", "mtext"}
    widths = [[space.attrib["width"] for space in line.iter("mspace")] for line in lines]
    assert widths == [[], ["2em"], [], ["2em"], [], ["2em"], []]
    assert symbols_in(lines[2]) == {"n", "γ"}


def test_blocks_in_blocks_go_further_in():
    def nested(x, n):
        while n > 0:
            if n > 1:
                x = x + n
        return x

    first = next(parsed(block(line)) for line in Lines(nested).on_paper() if line.depth == 2)
    assert first.find(".//mspace").attrib == {"width": "4em"}


# -- what it says ---------------------------------------------------------------------------------------------------

PRIME = 2**61 - 1


def value_of(*key: object) -> int:
    """Return a number of the field with PRIME elements, another for every key."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % PRIME


def sum_of(left: int, mark: str, right: int) -> int:
    return (left + (right if mark == "+" else -right)) % PRIME


class Reader:
    """Says what a drawn formula means to one who sees it.

    Groups that show nothing do not count: an exponent belongs to what stands right before it, and where that is a
    fraction or has an exponent already nobody can tell.
    Sums are sums. All else is any function of what stands in it, the same as in `meaning`; so nothing but a sum may
    read in another order.
    """

    def __init__(self, math: ElementTree.Element) -> None:
        self.tokens = [token for child in math for token in self.flat(child)]

    def flat(self, element: ElementTree.Element) -> list[tuple[str, object]]:
        children = list(element)
        if "data-symbol" in element.attrib:
            kind = "raised" if element.tag == "msup" else "value"
            return [(kind, value_of(element.attrib["data-symbol"]))]
        if element.tag == "mrow":
            fence = children[0].text if children[0].tag == "mo" else ""
            if fence in ("(", "|") and children[-1].text in (")", "|"):
                inside = [self.read(part) for part in self.split(children[1:-1])]
                return [("value", value_of("abs", *inside)) if fence == "|" else ("fenced", inside)]
            return [token for child in children for token in self.flat(child)]
        if element.tag == "mfrac":
            return [("fraction", value_of("/", *map(self.of, children)))]
        if element.tag == "msqrt":
            return [("value", value_of("root", self.of(children[0])))]
        if element.tag == "msup":
            base, exponent = children
            flipped = exponent.tag == "mi" and exponent.text == "T" and "data-symbol" not in exponent.attrib
            return [*self.flat(base), ("exponent", ("T",) if flipped else ("power", self.of(exponent)))]
        kind = {"mn": "value", "mo": "mark", "mi": "word", "mtext": "suffix"}[element.tag]
        return [(kind, value_of(element.text) if kind == "value" else element.text)]

    def split(self, children: list[ElementTree.Element]) -> list[list[ElementTree.Element]]:
        parts: list[list[ElementTree.Element]] = [[]]
        for child in children:
            if child.text == ",":
                parts.append([])
            else:
                parts[-1].append(child)
        return parts

    def read(self, elements: list[ElementTree.Element]) -> int:
        row = ElementTree.Element("math")
        row.extend(elements)
        return Reader(row).value()

    def of(self, element: ElementTree.Element) -> int:
        return self.read([element])

    def value(self) -> int:
        found = self.choice()
        assert not self.tokens, self.tokens
        return found

    def take(self, *marks: str) -> str:
        if self.tokens and self.tokens[0][0] == "mark" and self.tokens[0][1] in marks:
            return self.tokens.pop(0)[1]
        return ""

    def choice(self) -> int:
        body = self.comparison()
        if not self.take("if"):
            return body
        test = self.comparison()
        assert self.take("else")
        return value_of("choice", body, test, self.choice())

    def comparison(self) -> int:
        parts: list[object] = [self.chain(("+", "−"), self.terms)]
        while mark := self.take("<", "≥"):
            parts += [mark, self.chain(("+", "−"), self.terms)]
        return value_of("compare", *parts) if len(parts) > 1 else parts[0]

    def terms(self) -> int:
        return self.chain(("⊙", "·"), self.signed)

    def signed(self) -> int:
        return -self.signed() % PRIME if self.take("−") else self.chain((TIMES,), self.atom)

    def chain(self, marks: tuple[str, ...], operand) -> int:
        value = operand()
        while mark := self.take(*marks):
            right = operand()
            value = sum_of(value, mark, right) if mark in ("+", "−") else value_of(mark.replace("·", "⊙"), value, right)
        return value

    def atom(self) -> int:
        kind, value = self.tokens.pop(0)
        if kind == "word":
            assert self.take(APPLIED)
            kind, value = "value", value_of(value, *self.tokens.pop(0)[1])
        if kind == "fenced":
            kind, (value,) = "value", value
        assert kind in ("value", "raised", "fraction"), (kind, value)
        while self.tokens and self.tokens[0][0] in ("exponent", "suffix"):
            after, what = self.tokens.pop(0)
            assert kind == "value" or (kind == "raised" and after == "suffix"), "to what does this belong?"
            kind = "raised" if after == "exponent" else "value"
            word, *others = what if after == "exponent" else (what,)
            value = value_of(word, value, *others)
        return value


OPERATORS = {ast.Add: "+", ast.Sub: "−", ast.Mult: "⊙", ast.Div: "/", ast.MatMult: TIMES, ast.Lt: "<", ast.GtE: "≥"}


def meaning(node: ast.AST) -> int:
    """Say what an expression means to Python."""
    if isinstance(node, ast.Name):
        return value_of(letter(node.id))
    if isinstance(node, ast.Constant):
        return value_of(repr(node.value))
    if isinstance(node, ast.UnaryOp):
        return -meaning(node.operand) % PRIME
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        if ast.unparse(node.right) == "0.5":
            return value_of("root", meaning(node.left))
        return value_of("power", meaning(node.left), meaning(node.right))
    if isinstance(node, ast.BinOp):
        left, mark, right = meaning(node.left), OPERATORS[type(node.op)], meaning(node.right)
        return sum_of(left, mark, right) if mark in ("+", "−") else value_of(mark, left, right)
    if isinstance(node, ast.Compare):
        rights = zip(node.ops, map(meaning, node.comparators), strict=True)
        parts = [part for sign, right in rights for part in (OPERATORS[type(sign)], right)]
        return value_of("compare", meaning(node.left), *parts)
    if isinstance(node, ast.IfExp):
        return value_of("choice", meaning(node.body), meaning(node.test), meaning(node.orelse))
    if isinstance(node, ast.Subscript):
        return value_of(f"[{ast.unparse(node.slice)}]", meaning(node.value))
    if isinstance(node, ast.Attribute):
        return value_of("T", meaning(node.value))
    assert isinstance(node, ast.Call)
    name, arguments = node.func.attr, [meaning(argument) for argument in node.args]
    if name == "rsqrt":
        return value_of("/", value_of("1"), value_of("root", *arguments))
    if name == "square":
        return value_of("power", *arguments, value_of("2"))
    return value_of({"sigmoid": "σ", "sqrt": "root"}.get(name, name), *arguments)


NAMES = ["x", "h", "W", "T", "gamma_x", "new_c", "var", "x_hat", "tau", "2", "0.5", "1e-05"]
FORMS = [
    *("({}) + ({})", "({}) - ({})", "({}) * ({})", "({}) / ({})", "({}) @ ({})", "({}) ** ({})"),
    *("({}) ** 2", "({}) ** -1", "({}) ** 0.5", "-({})", "({}).T", "({})[0]", "torch.maximum({}, {})"),
    *(f"torch.{name}({{}})" for name in ("sigmoid", "tanh", "sqrt", "rsqrt", "abs", "square")),
    *("({}) < ({})", "({}) >= ({}) < ({})", "({}) if ({}) else ({})"),
]


@st.composite
def expressions(draw: st.DrawFn, depth: int = 4) -> str:
    if not depth or draw(st.integers(0, 9)) == 9:
        return draw(st.sampled_from(NAMES))
    form = draw(st.sampled_from(FORMS))
    return form.format(*(draw(expressions(depth - 1)) for _ in range(form.count("{}"))))


@settings(max_examples=500, deadline=None)
@given(expressions())
def test_the_drawing_says_what_python_computes(code: str):
    piece = written(code)
    math = compare(inline(piece), str(piece))
    assert Reader(math).value() == meaning(ast.parse(code, mode="eval").body)


# -- whatever a user writes -----------------------------------------------------------------------------------------

HOSTILE = "<script>alert(\"1\" & '2')</script>]]>&amp;"


@pytest.mark.parametrize("symbol", [HOSTILE, "权重", "重_ₜ", "שלום", "a" * 500, "𝑥", "first[0].g", "(h, c)", '"'])
def test_a_symbol_is_shown_as_it_is(symbol: str):
    math = parsed(inline(Name(symbol, "t")))
    assert symbols_in(math) == {symbol}
    assert characters("".join(math.itertext())) == characters(symbol + "ₜ")


def test_what_a_user_writes_stays_text():
    def told(x, kind, *, note):
        return x

    @pellucid.cell
    def hostile(x, h, *, U, W, 权重=pellucid.ones, kind: str = "<script>&\"'"):
        """<script>alert("&")</script>"""
        if kind == "<img src=x onerror='alert(1)'>":
            h = h * 0
        h = told(h, '</math><script>alert("&\'")</script>', note=f"<b>{kind}</b>")
        return torch.tanh(x @ U + h @ W) * 权重

    report = quietly(hostile, "<i>&", input_size=3, hidden_size=3, steps=1)
    assert len(report.mathml) == len(report.formula) == 4
    for mathml, line in zip(report.mathml, report.formula, strict=True):
        compare(mathml, line)
    assert "权重" in symbols_in(parsed(report.mathml[-1]))
    labels = [part for part in report.steps[0].parts if isinstance(part, Values)]
    assert any("<script>" in label.name for label in labels)
    for label in labels:
        compare(label.mathml, label.name)
