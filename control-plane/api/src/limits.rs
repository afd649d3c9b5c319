//! Every limit of this crate.

/// The longest body of a request, in bytes; as upstream's default.
pub const BODY: usize = 3 * 1024 * 1024;
/// The deepest nesting of objects and arrays in a body.
pub const DEPTH: usize = 120;
/// The most operations in one JSON patch; as upstream.
pub const JSON_PATCH_OPERATIONS: usize = 10_000;
/// The most strict-decoding errors that one answer lists; as upstream.
pub const STRICT_ERRORS: usize = 100;
