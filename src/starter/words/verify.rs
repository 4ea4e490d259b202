//! The verifier: reads an answer as a person would check it, and trusts none of it.

use super::line::Op;

/// What precedes the final number.
pub(super) const ANSWER_MARK: &str = "####";

/// What an answer is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The number after the last `####` is the right one.
    pub correct: bool,
    /// There is at least one equation, every equation is true, and the last one gives the number after `####`.
    pub chain_ok: bool,
}

/// The number after the last `####`; `None` when there is none or anything but the number follows it.
#[must_use]
pub fn parse_answer(completion: &str) -> Option<i64> {
    number(completion.rsplit_once(ANSWER_MARK)?.1)
}

/// Checks `completion` against the right answer.
#[must_use]
pub fn verify(completion: &str, answer: i64) -> Verdict {
    let stated = parse_answer(completion);
    Verdict { correct: stated == Some(answer), chain_ok: stated.is_some() && chain_result(completion) == stated }
}

/// The value of the last equation when all of them are true.
fn chain_result(completion: &str) -> Option<i64> {
    let (chain, _) = completion.rsplit_once(ANSWER_MARK)?;
    chain.split(';').try_fold(0, |_, equation| true_equation(equation))
}

/// The right-hand side of `a op b = c` when it is true.
fn true_equation(text: &str) -> Option<i64> {
    let (left, right) = text.split_once('=')?;
    let result = number(right)?;
    Op::ALL.into_iter().find_map(|op| {
        let (a, b) = left.split_once(op.symbol())?;
        (op.apply(number(a)?, number(b)?)? == result).then_some(result)
    })
}

/// A whole number written in digits alone: `+5`, `5 .` and `5 7` are none.
fn number(text: &str) -> Option<i64> {
    let digits = text.trim();
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}
