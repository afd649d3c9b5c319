//! Every limit of this crate.

/// The longest body of a request, in bytes; as upstream's default.
pub const BODY: usize = 3 * 1024 * 1024;
/// The deepest nesting of objects and arrays in a body.
pub const DEPTH: usize = 120;
/// The most operations in one JSON patch; as upstream.
pub const JSON_PATCH_OPERATIONS: usize = 10_000;
/// The most strict-decoding errors that one answer lists; as upstream.
pub const STRICT_ERRORS: usize = 100;
/// Managers of updates that an object keeps apart; as upstream.
pub const UPDATE_MANAGERS: usize = 10;
/// The longest name of a field manager, in bytes; as upstream.
pub const FIELD_MANAGER: usize = 128;
/// The longest name of a subresource in `managedFields`; as upstream.
pub const SUBRESOURCE_NAME: usize = 256;
