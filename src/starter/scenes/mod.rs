//! Scenes: what the starter model draws and reads. Coloured shapes on paper, with captions that mean them.
//!
//! A [`SceneSpec`] is the meaning of a caption ([`caption`]); [`sample()`] makes one up, together with a [`Scene`] that
//! satisfies it ([`layout`]); [`codec`] turns scenes and pictures into 64 codes and back, exactly; [`verify()`] judges a
//! picture against a meaning from its pixels alone; [`sheet`] lays pictures side by side for people. Everything is
//! procedural and deterministic, on every platform. No tensors, no model and no tokenizer live here.

pub mod caption;
pub mod codec;
pub mod layout;
pub mod render;
pub mod sample;
pub mod see;
pub mod sheet;
pub mod verify;

use serde::{Deserialize, Serialize};

pub use caption::parse;
pub use codec::{CODES, Codec, CodecError};
pub use layout::{Placed, Scene};
pub use sample::{Example, Split, sample, sample_any, sample_mixed};
pub use see::Seen;
pub use sheet::contact_sheet;
pub use verify::{Verdict, verify};

/// Cells along each side of a picture.
pub const GRID: usize = 8;
/// Codes of a picture, row by row.
pub const TOKENS: usize = GRID * GRID;
/// Pixels along each side of a cell.
pub const CELL: u32 = 32;
/// Pixels along each side of a picture.
pub const SIDE: u32 = GRID as u32 * CELL;
/// The most objects one group of a caption can ask for.
pub const MAX_COUNT: usize = 4;

/// The six colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Colour {
    Red,
    Green,
    Blue,
    Yellow,
    Orange,
    Purple,
}

impl Colour {
    /// Every colour.
    pub const ALL: [Self; 6] = [Self::Red, Self::Green, Self::Blue, Self::Yellow, Self::Orange, Self::Purple];

    /// The word of captions.
    #[must_use]
    pub fn word(self) -> &'static str {
        ["red", "green", "blue", "yellow", "orange", "purple"][self as usize]
    }
}

/// The four shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Shape {
    Circle,
    Square,
    Triangle,
    Cross,
}

impl Shape {
    /// Every shape.
    pub const ALL: [Self; 4] = [Self::Circle, Self::Square, Self::Triangle, Self::Cross];

    /// The word of captions, for one.
    #[must_use]
    pub fn word(self) -> &'static str {
        ["circle", "square", "triangle", "cross"][self as usize]
    }

    /// The word of captions, for several.
    #[must_use]
    pub fn plural(self) -> &'static str {
        ["circles", "squares", "triangles", "crosses"][self as usize]
    }
}

/// How large an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Size {
    /// One cell.
    Small,
    /// Two by two cells.
    Medium,
    /// Three by three cells.
    Large,
}

impl Size {
    /// Every size.
    pub const ALL: [Self; 3] = [Self::Small, Self::Medium, Self::Large];

    /// The word of captions.
    #[must_use]
    pub fn word(self) -> &'static str {
        ["small", "medium", "large"][self as usize]
    }

    /// Cells along each side of the object's box.
    #[must_use]
    pub fn cells(self) -> usize {
        self as usize + 1
    }
}

/// Where a caption wants its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Place {
    UpperLeft,
    UpperRight,
    LowerLeft,
    LowerRight,
    Middle,
}

impl Place {
    /// Every place.
    pub const ALL: [Self; 5] = [Self::UpperLeft, Self::UpperRight, Self::LowerLeft, Self::LowerRight, Self::Middle];

    /// The phrase of captions.
    #[must_use]
    pub fn phrase(self) -> &'static str {
        ["in the upper left", "in the upper right", "in the lower left", "in the lower right", "in the middle"]
            [self as usize]
    }

    /// Whether a centre (in cells, from the upper left corner of the picture) lies in this place. `margin` is how far,
    /// in cells, a quarter keeps from the midlines; the middle reaches `1 - margin / 2` cells from the exact middle.
    #[must_use]
    pub fn holds(self, centre: (f32, f32), margin: f32) -> bool {
        let half = GRID as f32 / 2.0;
        let (x, y) = (centre.0 - half, centre.1 - half);
        let (left, right, upper, lower) = (x <= -margin, x >= margin, y <= -margin, y >= margin);
        match self {
            Self::UpperLeft => upper && left,
            Self::UpperRight => upper && right,
            Self::LowerLeft => lower && left,
            Self::LowerRight => lower && right,
            Self::Middle => x.abs().max(y.abs()) <= 1.0 - margin / 2.0,
        }
    }
}

/// Where the first group lies, seen from the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Relation {
    Left,
    Right,
    Above,
    Below,
}

impl Relation {
    /// Every relation.
    pub const ALL: [Self; 4] = [Self::Left, Self::Right, Self::Above, Self::Below];

    /// The phrases of captions, the usual one first.
    #[must_use]
    pub fn phrases(self) -> [&'static str; 2] {
        match self {
            Self::Left => ["left of", "to the left of"],
            Self::Right => ["right of", "to the right of"],
            Self::Above => ["above", "over"],
            Self::Below => ["below", "under"],
        }
    }

    /// How far centre `a` lies on this side of centre `b` (along the named axis), and how far off to the side.
    #[must_use]
    pub fn offsets(self, a: (f32, f32), b: (f32, f32)) -> (f32, f32) {
        let (dx, dy) = (a.0 - b.0, a.1 - b.1);
        match self {
            Self::Left => (-dx, dy.abs()),
            Self::Right => (dx, dy.abs()),
            Self::Above => (-dy, dx.abs()),
            Self::Below => (dy, dx.abs()),
        }
    }
}

/// What kind of caption it is; evaluation is balanced over these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One object: "a red circle".
    Single,
    /// Two objects of different shapes: "a red circle and a blue square".
    Two,
    /// Several alike: "three green triangles".
    Count,
    /// One shape in two colours: "a red circle and a green circle".
    Colour,
    /// One object beside another: "a red circle left of a blue square".
    Position,
    /// Several objects beside one: "two red circles left of a blue square".
    CountPosition,
}

/// Every kind.
pub const KINDS: [Kind; 6] = [Kind::Single, Kind::Two, Kind::Count, Kind::Colour, Kind::Position, Kind::CountPosition];

impl Kind {
    /// The name of reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["single", "two", "count", "colour", "position", "count_position"][self as usize]
    }
}

/// Objects that a caption names together: "two small red circles". `None` leaves the choice to the painter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Group {
    /// How many, 1 to [`MAX_COUNT`].
    pub count: usize,
    /// Their size.
    pub size: Option<Size>,
    /// Their colour.
    pub colour: Option<Colour>,
    /// Their shape.
    pub shape: Shape,
}

/// The meaning of a caption.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SceneSpec {
    /// One or two groups; the picture holds exactly their objects.
    pub groups: Vec<Group>,
    /// Where the first group lies, seen from the second; only with two groups.
    pub relation: Option<Relation>,
    /// Where the objects of the only group lie; only with one group.
    pub place: Option<Place>,
}

impl SceneSpec {
    /// The objects asked for, in all.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.groups.iter().map(|group| group.count).sum()
    }

    /// The kind of caption this is the meaning of.
    #[must_use]
    pub fn kind(&self) -> Kind {
        let several = self.groups.iter().any(|group| group.count > 1);
        match (self.groups.as_slice(), self.relation) {
            ([_, ..], Some(_)) if several => Kind::CountPosition,
            ([_, ..], Some(_)) => Kind::Position,
            _ if several => Kind::Count,
            ([a, b], None) if a.shape == b.shape => Kind::Colour,
            ([_, _], None) => Kind::Two,
            _ => Kind::Single,
        }
    }
}
