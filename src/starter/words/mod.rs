//! Arithmetic word problems with a short chain of reasoning, generated without end and verified by program.
//!
//! A problem is a line of arithmetic of one or two steps, told as an everyday story or asked bare (a drill). Its answer
//! writes each step as an equation: `3 + 4 = 7 ; 7 - 2 = 5 #### 5`. Every number stays within 0..=99, so that each is
//! one token. Training and held-out problems are disjoint by a hash of what they say, not by how they were drawn.

mod line;
mod split;
mod stories;
mod verify;

pub use line::{Equation, Line, Op};
pub use split::Split;
pub use verify::{Verdict, parse_answer, verify};

use crate::diffusion::rng::Stream;

/// Longest question in tokens of the starter's tokenizer.
pub const MAX_QUESTION_TOKENS: usize = 27;
/// Longest reference answer in tokens of the starter's tokenizer, without the end token: two equations and the number.
pub const MAX_ANSWER_TOKENS: usize = 13;

/// Share of bare drills when kinds are mixed for training: with fewer, numbers never met together generalise badly.
pub const DRILL_SHARE: f64 = 0.4;
/// Share of two-step stories among all stories when kinds are mixed: they are the harder ones.
pub const TWO_STEP_SHARE: f64 = 0.6;

/// What kind of problem it is, and the unit in which accuracy is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A story with one operation.
    OneStep,
    /// A story with two operations.
    TwoStep,
    /// A bare line of arithmetic, with one or two operations.
    Drill,
}

impl Kind {
    /// All kinds, in the order of reports.
    pub const ALL: [Self; 3] = [Self::OneStep, Self::TwoStep, Self::Drill];

    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OneStep => "one_step",
            Self::TwoStep => "two_step",
            Self::Drill => "drill",
        }
    }
}

/// A question with its one right answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What is asked, in lower case with spaces around punctuation.
    pub question: String,
    /// The reference answer: each equation, then `#### ` and the number.
    pub answer_text: String,
    /// The number asked for, 0..=99.
    pub answer: i64,
    /// What kind of problem it is.
    pub kind: Kind,
    /// The arithmetic behind it, for reports by operation.
    pub line: Line,
}

/// Draws a problem of `kind` that belongs to `split`.
#[must_use]
pub fn sample(stream: &mut Stream, kind: Kind, split: Split) -> Problem {
    let ops = stories::shape(stream, kind);
    // Rejection with the shape fixed keeps shapes balanced. Every shape has problems in every split, most draws of the
    // training split pass, and one in about ten of the others.
    loop {
        let Some(line) = line::draw(stream, ops, kind == Kind::Drill) else {
            continue;
        };
        let question = stories::tell(stream, &line, kind);
        if split.admits(&question, &line) {
            return Problem { question, answer_text: line.solution(), answer: line.result(), kind, line };
        }
    }
}

/// Draws a problem of any kind, in the proportions of training.
#[must_use]
pub fn sample_mixed(stream: &mut Stream, split: Split) -> Problem {
    let kind = if stream.chance(DRILL_SHARE) {
        Kind::Drill
    } else if stream.chance(TWO_STEP_SHARE) {
        Kind::TwoStep
    } else {
        Kind::OneStep
    };
    sample(stream, kind, split)
}

/// Every word and sign that questions and answers are made of, numbers aside; sorted, without repetition.
#[must_use]
pub fn lexicon() -> Vec<&'static str> {
    let mut words = stories::words();
    words.extend(["=", ";", verify::ANSWER_MARK]);
    words.extend(Op::ALL.map(Op::symbol));
    words.sort_unstable();
    words.dedup();
    words
}

#[cfg(test)]
mod tests;
