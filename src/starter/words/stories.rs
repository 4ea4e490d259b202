//! The stories: templates of everyday life for each shape of arithmetic, and who and what they are about.
//!
//! A template is words separated by spaces. `{x}`, `{y}`, `{z}` are the numbers in order; `{n}`, `{m}`, `{k}` are three
//! different people and `{p}` the pronoun of the first; `{o}` is what is counted, `{c}` what it comes in; `{get}`,
//! `{lose}` and `{lose-they}` are verbs, `{less}` and `{all}` turns of phrase; `{e}` is the bare line in signs, `{w}` in
//! words.

use super::{
    Kind,
    line::{Line, Op},
};
use crate::diffusion::rng::Stream;

/// A shape of arithmetic and the ways to tell it.
struct Family {
    ops: &'static [Op],
    templates: &'static [&'static str],
}

/// The one-step shapes come first; see [`ONE_STEP`].
const FAMILIES: [Family; 9] = [
    Family {
        ops: &[Op::Add],
        templates: &[
            "{n} has {x} {o} . {p} {get} {y} more . how many {o} does {p} have now ?",
            "{n} {get} {x} {o} and then {y} more . how many {o} does {p} have {all} ?",
            "there are {x} {o} in a box . {n} puts in {y} more . how many {o} are in the box now ?",
            "{n} has {x} {o} and {m} has {y} . how many {o} do they have {all} ?",
            "{n} has {x} {o} . {m} has {y} more than {n} . how many {o} does {m} have ?",
        ],
    },
    Family {
        ops: &[Op::Sub],
        templates: &[
            "{n} has {x} {o} . {p} gives {y} to {m} . how many {o} does {p} have left ?",
            "{n} has {x} {o} . {p} {lose} {y} of them . how many {o} are left ?",
            "there are {x} {o} in a box . {n} takes {y} out . how many {o} are left in the box ?",
            "{n} has {x} {o} and {m} has {y} . how many more {o} does {n} have than {m} ?",
            "{n} needs {x} {o} . {p} has {y} now . how many more {o} does {p} need ?",
            "{n} has {x} {o} . {m} has {y} {less} than {n} . how many {o} does {m} have ?",
        ],
    },
    Family {
        ops: &[Op::Mul],
        templates: &[
            "{n} has {x} {c} with {y} {o} each . how many {o} does {p} have ?",
            "{n} {get} {x} {c} of {y} {o} each . how many {o} does {p} have {all} ?",
            "there are {x} {c} with {y} {o} in each . how many {o} are there {all} ?",
            "each of {x} kids has {y} {o} . how many {o} do they have {all} ?",
            "for {x} days {n} {get} {y} {o} each day . how many {o} does {p} have now ?",
        ],
    },
    Family {
        ops: &[Op::Add, Op::Add],
        templates: &[
            "{n} has {x} {o} . {p} {get} {y} and then {get} {z} more . how many {o} does {p} have now ?",
            "{n} has {x} {o} , {m} has {y} and {k} has {z} . how many {o} do they have {all} ?",
            "there are {x} {o} in a box . {n} puts in {y} and {m} puts in {z} . how many {o} are in the box now ?",
        ],
    },
    Family {
        ops: &[Op::Add, Op::Sub],
        templates: &[
            "{n} has {x} {o} . {p} {get} {y} more . then {p} gives {z} to {m} . how many {o} does {p} have left ?",
            "{n} {get} {x} {o} and then {y} more . {p} {lose} {z} of them . how many {o} are left ?",
            "there are {x} {o} in a box . {n} puts in {y} and {m} takes {z} out . how many {o} are in the box now ?",
            "{n} has {x} {o} and {m} has {y} . they {lose-they} {z} of them . how many {o} are left ?",
        ],
    },
    Family {
        ops: &[Op::Sub, Op::Add],
        templates: &[
            "{n} has {x} {o} . {p} gives {y} to {m} . then {p} {get} {z} more . how many {o} does {p} have now ?",
            "{n} has {x} {o} . {p} {lose} {y} and then {get} {z} . how many {o} does {p} have now ?",
            "there are {x} {o} in a box . {n} takes {y} out and {m} puts in {z} . how many {o} are in the box now ?",
        ],
    },
    Family {
        ops: &[Op::Sub, Op::Sub],
        templates: &[
            "{n} has {x} {o} . {p} gives {y} to {m} and {z} to {k} . how many {o} does {p} have left ?",
            "{n} has {x} {o} . {p} {lose} {y} and then {lose} {z} . how many {o} are left ?",
            "there are {x} {o} in a box . {n} takes {y} out and {m} takes {z} out . how many {o} are left in the box ?",
        ],
    },
    Family {
        ops: &[Op::Mul, Op::Add],
        templates: &[
            "{n} has {x} {c} with {y} {o} each . {p} {get} {z} more {o} . how many {o} does {p} have now ?",
            "each of {x} kids has {y} {o} and {n} has {z} . how many {o} do they have {all} ?",
            "{n} {get} {x} {c} of {y} {o} each and then {z} more {o} . how many {o} does {p} have {all} ?",
            "for {x} days {n} {get} {y} {o} each day . {m} gives {n} {z} more . how many {o} does {n} have now ?",
        ],
    },
    Family {
        ops: &[Op::Mul, Op::Sub],
        templates: &[
            "{n} has {x} {c} with {y} {o} each . {p} gives {z} {o} to {m} . how many {o} does {p} have left ?",
            "each of {x} kids has {y} {o} . they {lose-they} {z} of them . how many {o} are left ?",
            "{n} {get} {x} {c} of {y} {o} each and then {lose} {z} of them . how many {o} are left ?",
            "there are {x} {c} with {y} {o} in each . {n} takes {z} {o} out . how many {o} are left ?",
        ],
    },
];

/// How many of [`FAMILIES`] have one step.
const ONE_STEP: usize = 3;

const DRILLS: [&str; 7] =
    ["what is {e} ?", "{e} =", "{e} = ?", "{e}", "how much is {e} ?", "calculate {e} .", "what is {w} ?"];

const PEOPLE: [(&str, &str); 12] = [
    ("tom", "he"),
    ("sam", "he"),
    ("ben", "he"),
    ("leo", "he"),
    ("max", "he"),
    ("john", "he"),
    ("anna", "she"),
    ("mia", "she"),
    ("eva", "she"),
    ("lily", "she"),
    ("zoe", "she"),
    ("mary", "she"),
];
const OBJECTS: [&str; 14] = [
    "apples", "books", "coins", "cards", "pens", "cookies", "eggs", "shells", "stamps", "balls", "stickers", "toys",
    "marbles", "oranges",
];
const CONTAINERS: [&str; 4] = ["bags", "boxes", "baskets", "packs"];
const GET: [&str; 4] = ["buys", "finds", "gets", "wins"];
const LOSE: [&str; 5] = ["loses", "sells", "uses", "drops", "gives away"];
const LOSE_THEY: [&str; 5] = ["lose", "sell", "use", "drop", "give away"];
const LESS: [&str; 2] = ["less", "fewer"];
const ALL: [&str; 3] = ["in all", "in total", "altogether"];

/// The operations of a problem of `kind`.
pub(super) fn shape(stream: &mut Stream, kind: Kind) -> &'static [Op] {
    let one_step = match kind {
        Kind::OneStep => true,
        Kind::TwoStep => false,
        Kind::Drill => stream.chance(0.5),
    };
    let index = if one_step { stream.below(ONE_STEP) } else { ONE_STEP + stream.below(FAMILIES.len() - ONE_STEP) };
    FAMILIES.get(index).map_or(&[], |f| f.ops)
}

/// Tells `line` as a problem of `kind`, choosing template, people and things.
pub(super) fn tell(stream: &mut Stream, line: &Line, kind: Kind) -> String {
    let ops = line.ops();
    let templates: &[&str] = match kind {
        Kind::Drill => &DRILLS,
        _ => FAMILIES.iter().find(|f| f.ops == ops).map_or(&[], |f| f.templates),
    };
    let template = pick(stream, templates);
    let mut people = PEOPLE;
    stream.shuffle(&mut people);
    let [(n, pronoun), (m, _), (k, _), ..] = people;
    let numbers = line.operands();
    let number = |i: usize| numbers.get(i).map(i64::to_string).unwrap_or_default();
    let (object, container) = (pick(stream, &OBJECTS), pick(stream, &CONTAINERS));
    let words: Vec<String> = template
        .split(' ')
        .map(|slot| match slot {
            "{x}" => number(0),
            "{y}" => number(1),
            "{z}" => number(2),
            "{n}" => n.to_owned(),
            "{m}" => m.to_owned(),
            "{k}" => k.to_owned(),
            "{p}" => pronoun.to_owned(),
            "{o}" => object.to_owned(),
            "{c}" => container.to_owned(),
            "{get}" => pick(stream, &GET).to_owned(),
            "{lose}" => pick(stream, &LOSE).to_owned(),
            "{lose-they}" => pick(stream, &LOSE_THEY).to_owned(),
            "{less}" => pick(stream, &LESS).to_owned(),
            "{all}" => pick(stream, &ALL).to_owned(),
            "{e}" => line.written(Op::symbol),
            "{w}" => line.written(spoken),
            word => word.to_owned(),
        })
        .collect();
    words.join(" ")
}

fn spoken(op: Op) -> &'static str {
    match op {
        Op::Add => "plus",
        Op::Sub => "minus",
        Op::Mul => "times",
    }
}

fn pick(stream: &mut Stream, items: &[&'static str]) -> &'static str {
    stream.choose(items).copied().unwrap_or_default()
}

/// Every word that a question can contain, unsorted and with repetitions.
pub(super) fn words() -> Vec<&'static str> {
    let templates = FAMILIES.iter().flat_map(|f| f.templates).chain(&DRILLS);
    let phrases = templates.chain(&OBJECTS).chain(&CONTAINERS).chain(&GET).chain(&LOSE).chain(&LOSE_THEY);
    let phrases = phrases.chain(&LESS).chain(&ALL);
    let mut words: Vec<&str> = phrases.flat_map(|t| t.split(' ')).filter(|w| !w.starts_with('{')).collect();
    words.extend(PEOPLE.iter().flat_map(|&(name, pronoun)| [name, pronoun]));
    words.extend(Op::ALL.map(spoken));
    words
}
