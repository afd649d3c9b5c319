//! The server's half of SPDY/3.1, as much of it as `kubectl port-forward` speaks through a WebSocket: streams with
//! headers, data both ways, resets, pings. No sockets here: bytes in, frames out, and back.

pub mod frame;
mod headers;

pub use frame::{Decoder, Encoder, Frame};
