//! The bounds of expressions and their evaluation; as upstream's unless said otherwise.

/// The longest expression, in bytes.
pub const SOURCE: usize = 100_000;
/// The deepest nesting of an expression.
pub const DEPTH: usize = 120;
/// What one evaluation may cost: about a tenth of a second upstream.
pub const CALL_COST: u64 = 1_000_000;
/// What all rules of one object may cost together.
pub const OBJECT_COST: u64 = 10_000_000;
/// What one rule of a CustomResourceDefinition may cost by its estimate.
pub const RULE_ESTIMATE: u64 = 10_000_000;
/// What all rules of a CustomResourceDefinition may cost by their estimates.
pub const SCHEMA_ESTIMATE: u64 = 100_000_000;
/// The longest text that an expression may make, in bytes; ours.
pub const TEXT: usize = 8 * 1024 * 1024;
