//! A line of arithmetic, evaluated from left to right, and its solution written out.

use crate::diffusion::rng::Stream;

/// Largest number that may occur anywhere: the largest that is one token.
const MAX_NUMBER: i64 = 99;
/// Largest operand written in a question.
const MAX_OPERAND: i64 = 20;
/// Smallest operand in a story, where "1 apples" would be no English.
const MIN_STORY_OPERAND: i64 = 2;
/// Multiplication tables in use.
const TABLES: std::ops::RangeInclusive<i64> = 2..=9;

/// An operation on two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Op {
    /// Addition.
    Add,
    /// Subtraction.
    Sub,
    /// Multiplication.
    Mul,
}

impl Op {
    /// All operations.
    pub const ALL: [Self; 3] = [Self::Add, Self::Sub, Self::Mul];

    /// The sign, as written in drills and answers.
    #[must_use]
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
        }
    }

    /// The operation's value; `None` when the numbers are too large for it.
    #[must_use]
    pub fn apply(self, a: i64, b: i64) -> Option<i64> {
        match self {
            Self::Add => a.checked_add(b),
            Self::Sub => a.checked_sub(b),
            Self::Mul => a.checked_mul(b),
        }
    }
}

/// `a op b = result`, true by construction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Equation {
    /// Left operand.
    pub a: i64,
    /// The operation.
    pub op: Op,
    /// Right operand.
    pub b: i64,
    /// The value.
    pub result: i64,
}

/// One or two operations applied from left to right; every intermediate value within 0..=99.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Line {
    equations: Vec<Equation>,
}

impl Line {
    /// The line `first op operand op operand…`; `None` without operations or when a value leaves 0..=99.
    #[must_use]
    pub fn new(first: i64, steps: &[(Op, i64)]) -> Option<Self> {
        let mut equations = Vec::with_capacity(steps.len());
        let mut a = first;
        for &(op, b) in steps {
            let result = op.apply(a, b).filter(|r| (0..=MAX_NUMBER).contains(r))?;
            equations.push(Equation { a, op, b, result });
            a = result;
        }
        (!equations.is_empty()).then_some(Self { equations })
    }

    /// The steps in order, at least one.
    #[must_use]
    pub fn equations(&self) -> &[Equation] {
        &self.equations
    }

    /// The operations in order.
    #[must_use]
    pub fn ops(&self) -> Vec<Op> {
        self.equations.iter().map(|e| e.op).collect()
    }

    /// The numbers of the question in order: first operand, then one for each operation.
    #[must_use]
    pub fn operands(&self) -> Vec<i64> {
        self.equations.first().map(|e| e.a).into_iter().chain(self.equations.iter().map(|e| e.b)).collect()
    }

    /// The value of the whole line.
    #[must_use]
    pub fn result(&self) -> i64 {
        self.equations.last().map_or(0, |e| e.result)
    }

    /// The shape, such as `x+y-z`, for reports.
    #[must_use]
    pub fn shape(&self) -> String {
        let mut shape = String::from("x");
        for (e, operand) in self.equations.iter().zip(["y", "z"]) {
            shape.push_str(e.op.symbol());
            shape.push_str(operand);
        }
        shape
    }

    /// The line as a drill writes it, with `name` giving each operation's sign or word.
    #[must_use]
    pub fn written(&self, name: impl Fn(Op) -> &'static str) -> String {
        let first = self.equations.first().map_or(0, |e| e.a);
        self.equations.iter().fold(first.to_string(), |text, e| format!("{text} {} {}", name(e.op), e.b))
    }

    /// The reference answer: `3 + 4 = 7 ; 7 - 2 = 5 #### 5`.
    #[must_use]
    pub fn solution(&self) -> String {
        let steps: Vec<String> =
            self.equations.iter().map(|e| format!("{} {} {} = {}", e.a, e.op.symbol(), e.b, e.result)).collect();
        format!("{} {} {}", steps.join(" ; "), super::verify::ANSWER_MARK, self.result())
    }
}

/// Draws operands for `ops`; `None` when the draw leaves 0..=99. Drills also use 0 and 1.
pub(super) fn draw(stream: &mut Stream, ops: &[Op], drill: bool) -> Option<Line> {
    let smallest = if drill { 0 } else { MIN_STORY_OPERAND };
    let mut operand = |op: Option<&Op>| match op {
        Some(Op::Mul) => between(stream, *TABLES.start(), *TABLES.end()),
        _ => between(stream, smallest, MAX_OPERAND),
    };
    let first = operand(ops.first());
    let steps: Vec<(Op, i64)> = ops.iter().map(|op| (*op, operand(Some(op)))).collect();
    Line::new(first, &steps)
}

fn between(stream: &mut Stream, low: i64, high: i64) -> i64 {
    low + stream.below((high - low + 1) as usize) as i64
}
