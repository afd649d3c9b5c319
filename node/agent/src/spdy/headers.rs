//! Header blocks: name-value pairs, compressed by zlib with the dictionary of the SPDY/3 draft (section 2.6.10.1).
//! One compressor and one decompressor live as long as the connection.

use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use crate::limits;

/// Names and values in their order.
pub(super) type Headers = Vec<(String, String)>;

/// Checksum of the dictionary, as zlib asks for it.
#[cfg(test)]
const DICTIONARY_ID: u32 = 0xe3c6_a7c2;

pub(super) struct Inflater {
    zlib: Decompress,
    dictionary: Vec<u8>,
}

impl Inflater {
    pub(super) fn new() -> Inflater {
        Inflater { zlib: Decompress::new(true), dictionary: dictionary() }
    }

    /// The headers of a block.
    pub(super) fn read(&mut self, block: &[u8]) -> io::Result<Headers> {
        parse(&self.inflate(block)?).ok_or_else(|| bad("a header block is cut short"))
    }

    fn inflate(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(1024);
        let mut rest = block;
        loop {
            if out.len() > limits::SPDY_HEADERS {
                return Err(bad("a header block is too long"));
            }
            out.reserve(1024);
            let (read, wrote) = (self.zlib.total_in(), self.zlib.total_out());
            let result = self.zlib.decompress_vec(rest, &mut out, FlushDecompress::Sync);
            let used = usize::try_from(self.zlib.total_in() - read).unwrap_or(rest.len());
            rest = &rest[used.min(rest.len())..];
            match result {
                Err(e) if e.needs_dictionary().is_some() => {
                    self.zlib.set_dictionary(&self.dictionary).map_err(|e| bad(&e.to_string()))?;
                }
                Err(e) => return Err(bad(&e.to_string())),
                Ok(Status::StreamEnd) => return Ok(out),
                Ok(_) if rest.is_empty() && out.len() < out.capacity() => return Ok(out),
                Ok(_) if used == 0 && self.zlib.total_out() == wrote => return Ok(out),
                Ok(_) => {}
            }
        }
    }
}

pub(super) struct Deflater {
    zlib: Compress,
}

impl Deflater {
    pub(super) fn new() -> io::Result<Deflater> {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(&dictionary()).map_err(|e| bad(&e.to_string()))?;
        Ok(Deflater { zlib })
    }

    /// A block of these headers.
    pub(super) fn write(&mut self, headers: &[(&str, &str)]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        let number = |out: &mut Vec<u8>, n: usize| out.extend(u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes());
        number(&mut plain, headers.len());
        for (name, value) in headers {
            for text in [name, value] {
                number(&mut plain, text.len());
                plain.extend(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let mut rest = plain.as_slice();
        loop {
            let read = self.zlib.total_in();
            out.reserve(64);
            self.zlib.compress_vec(rest, &mut out, FlushCompress::Sync).map_err(|e| bad(&e.to_string()))?;
            let used = usize::try_from(self.zlib.total_in() - read).unwrap_or(rest.len());
            rest = &rest[used.min(rest.len())..];
            if rest.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
        }
    }
}

fn parse(plain: &[u8]) -> Option<Headers> {
    let mut rest = plain;
    let number = |rest: &mut &[u8]| -> Option<usize> {
        let (head, tail) = rest.split_first_chunk::<4>()?;
        *rest = tail;
        usize::try_from(u32::from_be_bytes(*head)).ok()
    };
    let count = number(&mut rest)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        let mut pair = [String::new(), String::new()];
        for text in &mut pair {
            let length = number(&mut rest)?;
            let (head, tail) = rest.split_at_checked(length)?;
            *text = String::from_utf8_lossy(head).into_owned();
            rest = tail;
        }
        let [name, value] = pair;
        headers.push((name, value));
    }
    Some(headers)
}

fn bad(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("SPDY: {message}"))
}

/// The dictionary: words with their lengths before them, then loose text.
fn dictionary() -> Vec<u8> {
    let mut out = Vec::with_capacity(1423);
    for word in WORDS {
        out.extend(u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        out.extend(word.as_bytes());
    }
    for text in TEXT {
        out.extend(text.as_bytes());
    }
    out
}

const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

const TEXT: &[&str] = &[
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Au",
    "thoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidd",
    "en404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr Ma",
    "y Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,imag",
    "e/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicpri",
    "vatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_dictionary_is_the_drafts() {
        let dictionary = dictionary();
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &dictionary {
            a = (a + u32::from(*byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!((dictionary.len(), b << 16 | a), (1423, DICTIONARY_ID));
    }

    #[test]
    fn blocks_share_one_stream() {
        let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::new());
        for (i, value) in ["8080", "8081", &"x".repeat(5000)].into_iter().enumerate() {
            let block = deflater.write(&[("streamtype", "data"), ("port", value)]).unwrap();
            if i == 0 {
                assert_eq!(&block[2..6], &DICTIONARY_ID.to_be_bytes());
            }
            let headers = inflater.read(&block).unwrap();
            assert_eq!(headers, [("streamtype".into(), "data".into()), ("port".into(), value.to_owned())]);
        }
        assert!(inflater.read(b"garbage").is_err());
    }
}
