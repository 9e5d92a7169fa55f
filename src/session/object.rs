//! Python data as an arena: what a pickle or a JSON text holds, with sharing and cycles kept.
//!
//! Objects name each other by number. So a repeated reference costs four bytes, a container may hold itself, and
//! nothing recurses when fifty thousand nested lists are built, walked or dropped.

/// Most bytes that one session's value may have, after decompression. A hundred times what a large session has.
pub const MAX_VALUE_BYTES: usize = 8 << 20;

/// Most objects in one session: one for each 16 bytes of the largest value. Each costs 32 bytes of memory.
pub const MAX_OBJECTS: usize = MAX_VALUE_BYTES / 16;

/// Deepest nesting of containers, the session's own dictionary included. Python's `json` module stops at about a
/// thousand, less what the caller's stack already uses, and a row that Django cannot read logs its user out.
pub const MAX_DEPTH: usize = 512;

/// Longest integer in decimal digits: the default limit of Python (3.11 and later) in both directions.
pub const MAX_INT_DIGITS: usize = 4300;

/// Bytes beyond which a two's complement integer has more than [`MAX_INT_DIGITS`] digits for certain:
/// 10^4300 needs 14,285 bits.
pub(crate) const MAX_INT_BYTES: usize = 1786;

/// An object's number in its [`Heap`].
pub(crate) type Id = u32;

/// A stretch of [`Heap::text`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Span {
    pub(crate) fn len(self) -> usize {
        self.end - self.start
    }
}

/// The zone of a datetime.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Zone {
    /// No zone at all.
    Naive,
    /// A fixed offset from UTC, in microseconds; UTC itself is 0.
    Offset(i64),
    /// A named zone, whose offset would need the zone's rules.
    Named,
}

/// One Python object.
#[derive(Debug)]
pub(crate) enum Object {
    None,
    Bool(bool),
    /// An integer of 64 bits.
    Int(i64),
    /// A larger integer: little-endian two's complement without needless bytes.
    BigInt(Span),
    Float(f64),
    /// Text in UTF-8, in which lone surrogates are encoded as if they were characters (Python's `surrogatepass`).
    Str(Span),
    /// A list, and with `tuple` a tuple.
    Seq {
        tuple: bool,
        items: Vec<Id>,
    },
    /// Pairs in the order they were set. A key may occur twice: the last one counts, as when JSON is read.
    Dict(Vec<(Id, Id)>),
    Bytes(Span),
    /// The ten bytes that Python pickles a datetime as, checked to be a date and a time.
    Datetime([u8; 10], Zone),
    /// Days, seconds, microseconds, as given.
    Timedelta(i64, i64, i64),
    Timezone(Zone),
    Uuid,
    /// A value of a known type that no JSON can carry, so that the type is all that is kept of it.
    Other(&'static str),
    /// A class or function that pickles of plain data name. Never called: see `pickle::global`.
    Global(super::pickle::global::Global),
}

impl Object {
    /// The type's name as Python spells it.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Object::None => "NoneType",
            Object::Bool(_) => "bool",
            Object::Int(_) | Object::BigInt(_) => "int",
            Object::Float(_) => "float",
            Object::Str(_) => "str",
            Object::Seq { tuple: false, .. } => "list",
            Object::Seq { tuple: true, .. } => "tuple",
            Object::Dict(_) => "dict",
            Object::Bytes(_) => "bytes",
            Object::Datetime(..) => "datetime.datetime",
            Object::Timedelta(..) => "datetime.timedelta",
            Object::Timezone(_) => "datetime.timezone",
            Object::Uuid => "uuid.UUID",
            Object::Other(name) => name,
            Object::Global(_) => "type",
        }
    }
}

/// The objects of one session and the bytes that they point into.
#[derive(Debug, Default)]
pub(crate) struct Heap {
    /// The value as read, then texts that had to be unescaped.
    pub(crate) text: Vec<u8>,
    pub(crate) objects: Vec<Object>,
}

/// More objects than [`MAX_OBJECTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeapFull;

impl Heap {
    pub(crate) fn push(&mut self, object: Object) -> Result<Id, HeapFull> {
        if self.objects.len() >= MAX_OBJECTS {
            return Err(HeapFull);
        }
        // MAX_OBJECTS is far below 2^32.
        let id = self.objects.len() as Id;
        self.objects.push(object);
        Ok(id)
    }

    pub(crate) fn get(&self, id: Id) -> &Object {
        // Every id was handed out by `push` of the same heap, and objects are never removed.
        &self.objects[id as usize]
    }

    pub(crate) fn bytes(&self, span: Span) -> &[u8] {
        // Spans are made by the readers, within the text, which only grows.
        &self.text[span.start..span.end]
    }

    /// Puts an integer in its one canonical form, so that equal integers are equal objects.
    pub(crate) fn int_object(&self, span: Span) -> Object {
        let bytes = self.bytes(span);
        let Some(&last) = bytes.last() else {
            return Object::Int(0);
        };
        let sign: u8 = if last & 0x80 == 0 { 0 } else { 0xff };
        let mut len = bytes.len();
        // A sign byte is needless where the byte below has the same sign bit.
        while len > 1 && bytes[len - 1] == sign && (bytes[len - 2] ^ sign) & 0x80 == 0 {
            len -= 1;
        }
        if len > 8 {
            return Object::BigInt(Span {
                start: span.start,
                end: span.start + len,
            });
        }
        let mut wide = [sign; 8];
        wide[..len].copy_from_slice(&bytes[..len]);
        Object::Int(i64::from_le_bytes(wide))
    }

    /// The object for an integer written in decimal; the caller has checked sign and digits.
    /// `None` where it has more than [`MAX_INT_DIGITS`].
    pub(crate) fn int_from_decimal(&mut self, text: &str) -> Option<Object> {
        if let Ok(small) = text.parse::<i64>() {
            return Some(Object::Int(small));
        }
        if text.trim_start_matches(['-', '+']).len() > MAX_INT_DIGITS {
            return None;
        }
        let big = text.parse::<num_bigint::BigInt>().ok()?;
        let start = self.text.len();
        self.text.extend_from_slice(&big.to_signed_bytes_le());
        Some(self.int_object(Span {
            start,
            end: self.text.len(),
        }))
    }
}

/// A session's dictionary, read from a Redis value or from a row.
#[derive(Debug)]
pub struct Dict {
    pub(crate) heap: Heap,
    pub(crate) root: Id,
}

impl Dict {
    pub(crate) fn pairs(&self) -> &[(Id, Id)] {
        match self.heap.get(self.root) {
            Object::Dict(pairs) => pairs,
            _ => &[],
        }
    }

    /// How many pairs the dictionary was written with.
    pub fn len(&self) -> usize {
        self.pairs().len()
    }

    /// Whether it is `{}`, which Django does store.
    pub fn is_empty(&self) -> bool {
        self.pairs().is_empty()
    }

    /// The JSON text that Django's `JSONSerializer` writes for this dictionary: pure ASCII, no white space.
    ///
    /// # Errors
    /// [`super::json::NotJson`] names the type, or the limit, that stands in the way.
    pub fn to_json(&self) -> Result<Vec<u8>, super::json::NotJson> {
        super::json::write(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(bytes: &[u8]) -> Object {
        let heap = Heap {
            text: bytes.to_vec(),
            objects: Vec::new(),
        };
        heap.int_object(Span {
            start: 0,
            end: bytes.len(),
        })
    }

    #[test]
    fn equal_integers_are_equal_objects() {
        for (bytes, expected) in [
            (&[][..], 0),
            (&[0, 0, 0], 0),
            (&[0xff, 0xff], -1),
            (&[0x80], -128),
            (&[0x80, 0], 128),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0], i64::MAX),
            (&[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff], i64::MIN),
        ] {
            assert!(matches!(canonical(bytes), Object::Int(n) if n == expected), "{bytes:?}");
        }
        assert!(matches!(canonical(&[0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0]), Object::BigInt(s) if s.len() == 9));
    }

    #[test]
    fn an_object_stays_within_the_documented_size() {
        assert!(size_of::<Object>() <= 32);
    }
}
