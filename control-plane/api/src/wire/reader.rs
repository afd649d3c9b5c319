//! The protobuf encoding itself: tags, varints, lengths. Every length is checked against the bytes
//! that are there.

/// Why bytes are no protobuf, in words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// The value of one field as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Data<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Data<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Data::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed("a number stands where a message or text should")),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed("a text is not UTF-8"))
    }

    pub(super) fn int(self) -> Result<i64, Malformed> {
        match self {
            Data::Varint(number) | Data::Fixed64(number) => Ok(number.cast_signed()),
            Data::Fixed32(number) => Ok(i64::from(number.cast_signed())),
            Data::Bytes(_) => Err(Malformed("a text stands where a number should")),
        }
    }

    pub(super) fn double(self) -> Result<f64, Malformed> {
        match self {
            Data::Fixed64(bits) => Ok(f64::from_bits(bits)),
            Data::Fixed32(bits) => Ok(f64::from(f32::from_bits(bits))),
            _ => Err(Malformed("no floating-point number stands where one should")),
        }
    }
}

/// The fields of a message, in the order of the wire.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut number = 0u64;
        for shift in (0..70).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(Malformed("it ends inside a number"))?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed("a number is longer than ten bytes"))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed("it ends inside a field"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u32, Data<'a>), Malformed> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Malformed("a field number is out of range"))?;
        let fixed = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, byte| (number << 8) | u64::from(*byte));
        let data = match tag & 7 {
            0 => Data::Varint(self.varint()?),
            1 => Data::Fixed64(fixed(self.take(8)?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Malformed("a length is out of range"))?;
                Data::Bytes(self.take(length)?)
            }
            5 => Data::Fixed32(u32::try_from(fixed(self.take(4)?)).unwrap_or_default()),
            _ => return Err(Malformed("a field has an unknown wire type")),
        };
        Ok((number, data))
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(u32, Data<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}
