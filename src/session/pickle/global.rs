//! The classes and functions that pickles of plain data name, and what a call of each stands for.
//!
//! They are matched by the exact pair of module and full name: from protocol 4 on a name may be dotted, so a check of
//! the module alone would let `("uuid", "os.system")` through. Nothing is imported or called; a known pair only tells
//! which value the arguments spell. A pair that is not here makes the session opaque, and so does nothing else.

use super::super::object::{Heap, Id, Object, Span, Zone};
use super::{PickleError, Work, datetime};

/// Longest text of a Decimal that is looked at. Python's own contexts stop far below.
const MAX_DECIMAL_LEN: usize = 4300;

/// Most arguments that a call in plain data has.
const MAX_ARGS: usize = 3;

/// A known class or function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Global {
    Bytearray,
    Bytes,
    CodecsEncode,
    Complex,
    Date,
    Datetime,
    Decimal,
    DefaultDict,
    Frozenset,
    /// `builtins.getattr`, honest in one form only: `getattr(zoneinfo.ZoneInfo, "_unpickle")`.
    Getattr,
    OrderedDict,
    /// `pytz._UTC`, which Django up to 3.2 uses for UTC.
    PytzUtc,
    /// `copyreg._reconstructor`, by which protocols 0 and 1 make a UUID.
    Reconstructor,
    SafeString,
    Set,
    Time,
    Timedelta,
    Timezone,
    /// A plain type that is only ever named, as a defaultdict's factory or as a base class.
    Type,
    Uuid,
    ZoneInfo,
    ZoneInfoUnpickle,
}

impl Global {
    /// The known class or function of that name, in Python 3's spelling or in that of Python 2.
    pub(super) fn find(module: &[u8], name: &[u8]) -> Option<Global> {
        Some(match (module, name) {
            (b"builtins" | b"__builtin__", _) => match name {
                b"bytearray" => Global::Bytearray,
                b"bytes" => Global::Bytes,
                b"complex" => Global::Complex,
                b"frozenset" => Global::Frozenset,
                b"getattr" => Global::Getattr,
                b"set" => Global::Set,
                b"bool" | b"dict" | b"float" | b"int" | b"list" | b"long" | b"object" | b"str" | b"tuple"
                | b"unicode" => Global::Type,
                _ => return None,
            },
            (b"_codecs", b"encode") => Global::CodecsEncode,
            (b"collections", b"OrderedDict") => Global::OrderedDict,
            (b"collections", b"defaultdict") => Global::DefaultDict,
            (b"copyreg" | b"copy_reg", b"_reconstructor") => Global::Reconstructor,
            (b"datetime", b"date") => Global::Date,
            (b"datetime", b"datetime") => Global::Datetime,
            (b"datetime", b"time") => Global::Time,
            (b"datetime", b"timedelta") => Global::Timedelta,
            (b"datetime", b"timezone") => Global::Timezone,
            (b"decimal" | b"_decimal" | b"_pydecimal", b"Decimal") => Global::Decimal,
            (b"django.utils.safestring", b"SafeString" | b"SafeText") => Global::SafeString,
            (b"pytz", b"_UTC") => Global::PytzUtc,
            (b"uuid", b"UUID") => Global::Uuid,
            (b"zoneinfo", b"ZoneInfo") => Global::ZoneInfo,
            _ => return None,
        })
    }

    /// The name that messages give it.
    fn name(self) -> &'static str {
        match self {
            Global::Bytearray => "bytearray",
            Global::Bytes => "bytes",
            Global::CodecsEncode => "_codecs.encode",
            Global::Complex => "complex",
            Global::Date => "datetime.date",
            Global::Datetime => "datetime.datetime",
            Global::Decimal => "decimal.Decimal",
            Global::DefaultDict => "collections.defaultdict",
            Global::Frozenset => "frozenset",
            Global::Getattr => "builtins.getattr",
            Global::OrderedDict => "collections.OrderedDict",
            Global::PytzUtc => "pytz._UTC",
            Global::Reconstructor => "copyreg._reconstructor",
            Global::SafeString => "django.utils.safestring.SafeString",
            Global::Set => "set",
            Global::Time => "datetime.time",
            Global::Timedelta => "datetime.timedelta",
            Global::Timezone => "datetime.timezone",
            Global::Type => "a plain type",
            Global::Uuid => "uuid.UUID",
            Global::ZoneInfo => "zoneinfo.ZoneInfo",
            Global::ZoneInfoUnpickle => "zoneinfo.ZoneInfo._unpickle",
        }
    }

    /// What `self(*args)` stands for.
    pub(super) fn call(self, args: &[Id], heap: &mut Heap, work: &mut Work) -> Result<Made, PickleError> {
        let refused = Err(PickleError::Call { callee: self.name() });
        if args.len() > MAX_ARGS {
            return refused;
        }
        let none = Object::None;
        let arg = |i: usize| args.get(i).map_or(&none, |id| heap.get(*id));
        let object = match (self, args.len(), arg(0), arg(1), arg(2)) {
            (Global::Set, 0, ..) | (Global::Set, 1, Object::Seq { .. }, ..) => Object::Other("set"),
            (Global::Frozenset, 0, ..) | (Global::Frozenset, 1, Object::Seq { .. }, ..) => Object::Other("frozenset"),
            (Global::Bytes, 0, ..) => Object::Bytes(Span { start: 0, end: 0 }),
            (Global::Bytearray, 0, ..) | (Global::Bytearray, 1, Object::Bytes(_), ..) => Object::Other("bytearray"),
            (Global::Bytearray, 2, Object::Str(_), Object::Str(codec), _) if is_latin1(heap.bytes(*codec)) => {
                Object::Other("bytearray")
            }
            (Global::CodecsEncode, 2, Object::Str(text), Object::Str(codec), _) if is_latin1(heap.bytes(*codec)) => {
                let text = *text;
                work.charge(text.len())?;
                Object::Bytes(encode_latin1(heap, text)?)
            }
            (Global::Complex, 2, Object::Float(_), Object::Float(_), _) => Object::Other("complex"),
            (Global::Decimal, 1, Object::Str(text), ..) if text.len() <= MAX_DECIMAL_LEN => {
                work.charge(text.len())?;
                if !is_decimal(heap.bytes(*text)) {
                    return refused;
                }
                Object::Other("decimal.Decimal")
            }
            (Global::Date, 1, Object::Bytes(state), ..) if datetime::is_date(heap.bytes(*state), false) => {
                Object::Other("datetime.date")
            }
            (Global::Time, 1, Object::Bytes(state), ..)
            | (Global::Time, 2, Object::Bytes(state), Object::Timezone(_), _)
                if datetime::is_time(heap.bytes(*state), true) =>
            {
                Object::Other("datetime.time")
            }
            (Global::Datetime, 1, Object::Bytes(state), ..) => match datetime_state(heap.bytes(*state)) {
                Some(state) => Object::Datetime(state, Zone::Naive),
                None => return refused,
            },
            (Global::Datetime, 2, Object::Bytes(state), Object::Timezone(zone), _) => {
                match datetime_state(heap.bytes(*state)) {
                    Some(state) => Object::Datetime(state, *zone),
                    None => return refused,
                }
            }
            (Global::Timedelta, 3, Object::Int(days), Object::Int(seconds), Object::Int(us)) => {
                Object::Timedelta(*days, *seconds, *us)
            }
            (Global::Timezone, 1, Object::Timedelta(days, seconds, us), ..)
            | (Global::Timezone, 2, Object::Timedelta(days, seconds, us), Object::Str(_), _) => {
                match datetime::zone(*days, *seconds, *us) {
                    Some(zone) => Object::Timezone(zone),
                    None => return refused,
                }
            }
            (Global::PytzUtc, 0, ..) => Object::Timezone(Zone::Offset(0)),
            (Global::Getattr, 2, Object::Global(Global::ZoneInfo), Object::Str(name), _)
                if heap.bytes(*name) == b"_unpickle" =>
            {
                Object::Global(Global::ZoneInfoUnpickle)
            }
            (Global::ZoneInfoUnpickle, 2, Object::Str(_), Object::Int(_) | Object::Bool(_), _) => {
                Object::Timezone(Zone::Named)
            }
            (Global::Uuid, 0, ..) => Object::Uuid,
            (Global::Reconstructor, 3, Object::Global(Global::Uuid), Object::Global(Global::Type), Object::None) => {
                Object::Uuid
            }
            // The classes of these three are lost in JSON anyway, so they become the plain str and dict at once.
            (Global::SafeString, 1, Object::Str(_), ..) => return Ok(Made::Same(args[0])),
            (Global::OrderedDict, 0, ..) => Object::Dict(Vec::new()),
            (Global::DefaultDict, 0 | 1, Object::None | Object::Global(_), ..) => Object::Dict(Vec::new()),
            _ => return refused,
        };
        Ok(Made::New(object))
    }
}

/// What a call gives: something new, or one of its arguments.
pub(super) enum Made {
    New(Object),
    Same(Id),
}

/// Protocol 2 spells bytes as `_codecs.encode(text, "latin1")`. Any other codec is refused: some of them compute.
fn is_latin1(codec: &[u8]) -> bool {
    matches!(codec, b"latin1" | b"latin-1")
}

fn encode_latin1(heap: &mut Heap, text: Span) -> Result<Span, PickleError> {
    let text = std::str::from_utf8(heap.bytes(text)).map_err(|_| PickleError::Text)?;
    let bytes: Result<Vec<u8>, _> = text.chars().map(u8::try_from).collect();
    let start = heap.text.len();
    heap.text.extend_from_slice(&bytes.map_err(|_| PickleError::Text)?);
    super::check_text_size(heap)?;
    Ok(Span {
        start,
        end: heap.text.len(),
    })
}

fn datetime_state(bytes: &[u8]) -> Option<[u8; 10]> {
    let state: [u8; 10] = bytes.try_into().ok()?;
    (datetime::is_date(&state[..4], true) && datetime::is_time(&state[4..], false)).then_some(state)
}

/// Whether `str(Decimal)` may print this: digits with point and exponent, an infinity, or a NaN with its payload.
fn is_decimal(text: &[u8]) -> bool {
    let text = text.strip_prefix(b"-").unwrap_or(text);
    if text == b"Infinity" {
        return true;
    }
    if let Some(payload) = text.strip_prefix(b"NaN").or_else(|| text.strip_prefix(b"sNaN")) {
        return payload.iter().all(u8::is_ascii_digit);
    }
    let (number, exponent) = match text.iter().position(|b| matches!(b, b'E' | b'e')) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let digits = number.iter().filter(|b| b.is_ascii_digit()).count();
    let points = number.iter().filter(|b| **b == b'.').count();
    let exponent_ok = exponent.is_none_or(|exponent| {
        let exponent = exponent
            .strip_prefix(b"-")
            .or_else(|| exponent.strip_prefix(b"+"))
            .unwrap_or(exponent);
        !exponent.is_empty() && exponent.iter().all(u8::is_ascii_digit)
    });
    digits > 0 && points <= 1 && digits + points == number.len() && exponent_ok
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_pairs_are_known() {
        assert_eq!(Global::find(b"uuid", b"UUID"), Some(Global::Uuid));
        for (module, name) in [
            ("uuid", "os.system"),
            ("datetime", "sys.modules"),
            ("datetime", "datetime.__class__"),
            ("builtins", "eval"),
            ("builtins", "object.__subclasses__"),
            ("collections", "builtins.eval"),
            ("os", "system"),
            ("", ""),
        ] {
            assert_eq!(
                Global::find(module.as_bytes(), name.as_bytes()),
                None,
                "{module}.{name}"
            );
        }
    }

    #[test]
    fn decimals_are_what_python_prints() {
        for good in ["0", "19.90", "-1E+5", "1.5E-7", "NaN", "sNaN12", "-Infinity", "0E-8"] {
            assert!(is_decimal(good.as_bytes()), "{good}");
        }
        for bad in ["", "-", "abc", "1.2.3", ".", "1E", "1E+", "1 "] {
            assert!(!is_decimal(bad.as_bytes()), "{bad}");
        }
    }
}
