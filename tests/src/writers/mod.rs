//! The proof that an image has one writer, while something is the matter with the host of the first ([`Trouble`]) and the
//! image goes to another one.
//!
//! | file | noun |
//! |---|---|
//! | [`fence`] | an image behind our own export: two exports at a real server, without guests and daemons |
//! | [`given`] | an image of any pool that goes from guest to guest, or with its guest, by real daemons |
//! | [`image`] | the watcher of an image: whose records come to stand on it |

pub mod fence;
pub mod given;
pub mod image;

/// What is the matter with the first writer's host while the image goes to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The whole machine stands still, and wakes up after that. Where our own export fences.
    Frozen,
    /// It is cut off from the server too, and goes on: what it was writing comes when the link is whole again.
    CutOff,
    /// It is cut off from the other hosts alone: it goes on writing, and hears from nobody that the image is not its own any
    /// more.
    Unaware,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Frozen, Self::CutOff, Self::Unaware];
}

/// What is left out on purpose, to show that the watcher would see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Margin {
    /// As it is.
    Kept,
    /// Nothing lies between the last write of the first and the first one of the second.
    TakenOut,
}
