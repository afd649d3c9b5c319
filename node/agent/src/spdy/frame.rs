//! Frames of SPDY/3.1 (draft section 2.2): bytes to frames and back. Pure.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::headers::{Deflater, Inflater};
use crate::limits;

const VERSION: u16 = 3;
const FIN: u8 = 1;

/// A frame as a server gets or sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The client opens a stream.
    Open {
        stream: u32,
        fin: bool,
        headers: Vec<(String, String)>,
    },
    /// The server accepts it.
    Reply {
        stream: u32,
    },
    Data {
        stream: u32,
        fin: bool,
        data: Bytes,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Ping {
        id: u32,
    },
    /// The other side leaves.
    GoAway,
    Window {
        stream: u32,
        delta: u32,
    },
    /// Settings and kinds that need no action.
    Other,
}

/// Reads frames from a stream of bytes.
pub struct Decoder {
    buffer: BytesMut,
    inflater: Inflater,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { buffer: BytesMut::new(), inflater: Inflater::new() }
    }
}

impl Decoder {
    /// Takes bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame that is whole.
    ///
    /// # Errors
    /// When the bytes are not SPDY/3.1, or a frame is larger than the limit.
    pub fn frame(&mut self) -> io::Result<Option<Frame>> {
        let Some(head) = self.buffer.first_chunk::<8>().copied() else { return Ok(None) };
        let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        if length > limits::STREAM_MESSAGE {
            return Err(bad("a frame is too large"));
        }
        if self.buffer.len() < 8 + length {
            return Ok(None);
        }
        self.buffer.advance(8);
        let body = self.buffer.split_to(length).freeze();
        if first & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data { stream: first, fin: flags & FIN != 0, data: body }));
        }
        if (first >> 16) & 0x7fff != u32::from(VERSION) {
            return Err(bad("another version than 3"));
        }
        self.control(first & 0xffff, flags, body).map(Some)
    }

    fn control(&mut self, kind: u32, flags: u8, mut body: Bytes) -> io::Result<Frame> {
        let need = |body: &Bytes, n: usize| if body.len() < n { Err(bad("a frame is cut short")) } else { Ok(()) };
        Ok(match kind {
            1 => {
                need(&body, 10)?;
                let stream = body.get_u32() & 0x7fff_ffff;
                body.advance(6);
                Frame::Open { stream, fin: flags & FIN != 0, headers: self.inflater.read(&body)? }
            }
            3 => {
                need(&body, 8)?;
                Frame::Reset { stream: body.get_u32() & 0x7fff_ffff, status: body.get_u32() }
            }
            6 => {
                need(&body, 4)?;
                Frame::Ping { id: body.get_u32() }
            }
            7 => Frame::GoAway,
            8 => {
                need(&body, 4)?;
                body.advance(4);
                // Read for the sake of the shared compression state.
                self.inflater.read(&body)?;
                Frame::Other
            }
            9 => {
                need(&body, 8)?;
                Frame::Window { stream: body.get_u32() & 0x7fff_ffff, delta: body.get_u32() & 0x7fff_ffff }
            }
            _ => Frame::Other,
        })
    }
}

/// Writes frames.
pub struct Encoder {
    deflater: Deflater,
}

impl Encoder {
    /// # Errors
    /// When zlib refuses the dictionary.
    pub fn new() -> io::Result<Encoder> {
        Ok(Encoder { deflater: Deflater::new()? })
    }

    /// The frame's bytes.
    ///
    /// # Errors
    /// When its headers cannot be compressed.
    pub fn encode(&mut self, frame: &Frame) -> io::Result<Bytes> {
        Ok(match frame {
            Frame::Data { stream, fin, data } => {
                let mut out = BytesMut::with_capacity(8 + data.len());
                out.put_u32(*stream);
                out.put_u8(u8::from(*fin) * FIN);
                out.put_uint(data.len() as u64, 3);
                out.put_slice(data);
                out.freeze()
            }
            Frame::Open { stream, fin, headers } => {
                let pairs: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                let block = self.deflater.write(&pairs)?;
                let mut body = stream.to_be_bytes().to_vec();
                body.extend([0; 6]);
                body.extend(block);
                control(1, u8::from(*fin) * FIN, &body)
            }
            Frame::Reply { stream } => {
                let mut body = stream.to_be_bytes().to_vec();
                body.extend(self.deflater.write(&[])?);
                control(2, 0, &body)
            }
            Frame::Reset { stream, status } => pair(3, *stream, *status),
            Frame::Ping { id } => control(6, 0, &id.to_be_bytes()),
            Frame::GoAway => pair(7, 0, 0),
            Frame::Window { stream, delta } => pair(9, *stream, *delta),
            Frame::Other => Bytes::new(),
        })
    }
}

fn pair(kind: u16, a: u32, b: u32) -> Bytes {
    let mut body = a.to_be_bytes().to_vec();
    body.extend(b.to_be_bytes());
    control(kind, 0, &body)
}

fn control(kind: u16, flags: u8, body: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(8 + body.len());
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u8(flags);
    out.put_uint(body.len() as u64, 3);
    out.put_slice(body);
    out.freeze()
}

fn bad(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("SPDY: {message}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn there_and_back_in_pieces_of_any_size() {
        let frames = [
            Frame::Open { stream: 1, fin: true, headers: vec![("streamtype".into(), "error".into())] },
            Frame::Open { stream: 3, fin: false, headers: vec![("streamtype".into(), "data".into())] },
            Frame::Data { stream: 3, fin: false, data: Bytes::from_static(b"hello") },
            Frame::Data { stream: 3, fin: true, data: Bytes::new() },
            Frame::Reset { stream: 3, status: 5 },
            Frame::Ping { id: 7 },
            Frame::Window { stream: 3, delta: 100 },
            Frame::GoAway,
        ];
        for size in [1, 3, 7, 1000] {
            let mut encoder = Encoder::new().unwrap();
            let bytes: Vec<u8> = frames.iter().flat_map(|f| encoder.encode(f).unwrap()).collect();
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(size) {
                decoder.push(piece);
                while let Some(frame) = decoder.frame().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, frames, "pieces of {size}");
        }
    }

    #[test]
    fn bytes_on_the_wire() {
        let mut encoder = Encoder::new().unwrap();
        let data = Frame::Data { stream: 5, fin: true, data: Bytes::from_static(b"x") };
        assert_eq!(&encoder.encode(&data).unwrap()[..], [0, 0, 0, 5, 1, 0, 0, 1, b'x']);
        let ping = encoder.encode(&Frame::Ping { id: 1 }).unwrap();
        assert_eq!(&ping[..], [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
    }

    #[test]
    fn garbage_is_refused() {
        for bytes in [
            &b"\x80\x02\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01"[..],
            b"\x00\x00\x00\x01\x00\xff\xff\xff",
            b"\x80\x03\x00\x01\x00\x00\x00\x01x",
        ] {
            let mut decoder = Decoder::default();
            decoder.push(bytes);
            assert!(decoder.frame().is_err(), "{bytes:?}");
        }
    }
}
