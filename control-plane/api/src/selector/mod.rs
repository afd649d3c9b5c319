//! Label and field selectors: parsing with upstream's errors, and matching.

mod fields;
mod labels;

pub use fields::Fields;
pub use labels::{Labels, Operator, Requirement};
