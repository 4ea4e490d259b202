//! Which problems are trained on and which are kept for measuring. A problem's split is a function of what it says.

use super::line::{Equation, Line, Op};
use crate::diffusion::rng::mix64;

/// One text in this many is held out, and one pair of operands in as many.
const HELD_OUT_ONE_IN: u64 = 10;

/// A set of problems. The three are disjoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// What the model may be trained on.
    Train,
    /// Whole question texts never trained on, whose equations occur in training under other texts.
    HeldOut,
    /// Problems with an equation that training shows nowhere: in no story, no drill, no chain, neither way round.
    HeldOutOperands,
}

impl Split {
    /// All splits.
    pub const ALL: [Self; 3] = [Self::Train, Self::HeldOut, Self::HeldOutOperands];

    /// The name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::HeldOut => "held_out",
            Self::HeldOutOperands => "held_out_operands",
        }
    }

    /// The split of a problem.
    #[must_use]
    pub fn of(question: &str, line: &Line) -> Self {
        if line.equations().iter().any(operands_are_held_out) {
            Self::HeldOutOperands
        } else if hash(question.bytes().map(u64::from)).is_multiple_of(HELD_OUT_ONE_IN) {
            Self::HeldOut
        } else {
            Self::Train
        }
    }

    pub(super) fn admits(self, question: &str, line: &Line) -> bool {
        Self::of(question, line) == self
    }
}

fn operands_are_held_out(e: &Equation) -> bool {
    // 3 + 4 gives 4 + 3 away, so they are held out together.
    let (a, b) = if e.op == Op::Sub { (e.a, e.b) } else { (e.a.min(e.b), e.a.max(e.b)) };
    hash([e.op as u64, a as u64, b as u64].into_iter()).is_multiple_of(HELD_OUT_ONE_IN)
}

fn hash(items: impl Iterator<Item = u64>) -> u64 {
    items.fold(0, |h, item| mix64(h ^ item))
}
