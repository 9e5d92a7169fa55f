//! Python pickles, protocols 0 to 5, read as data: a parser that never executes anything.
//!
//! What a pickle may hold here is plain data: numbers, texts, containers, and the values in the table of known globals.
//! Any other class or function makes the whole session opaque, even where its result is dropped: the reason names it,
//! nothing imports it. Everything is bounded: the value's size, its objects, the stack, the memo, and the work that
//! calls can ask for. There is no recursion, so nesting costs no stack; how deep it goes is judged when JSON is
//! written.
//!
//! Not read, since no Django backend writes it: the extension registry, persistent ids, out-of-band buffers, bytes
//! after STOP, a stack with more than one object at STOP. A FRAME must fit the value and is otherwise passed over, as
//! CPython's own reader does.
//!
//! Why not the crate `serde-pickle`: its values are an owned tree, so that a shared reference is copied (four hundred
//! bytes expand to 2^60 elements) and a cycle is an error; it builds that tree recursively and without limits; its maps
//! are sorted, while a row keeps the order of Django's dictionary; its texts are Rust strings, which hold no lone
//! surrogate; and it knows neither datetimes, SafeString and the other honest classes, nor what to call the rest.

mod datetime;
pub(crate) mod global;
mod machine;
mod opcode;
mod text;
mod write;

use machine::Machine;

pub(crate) use datetime::isoformat;
pub(crate) use text::push_code_point;
pub use write::write;

use super::object::{Dict, Heap, HeapFull, MAX_INT_BYTES, MAX_OBJECTS, MAX_VALUE_BYTES, Object, Span};

/// Most entries on the stack, and most marks.
const MAX_STACK: usize = MAX_OBJECTS;

/// Highest memo index. Picklers count upwards, so an index beyond the number of objects is made up.
const MAX_MEMO: usize = MAX_OBJECTS;

/// Bytes that unescaped texts may add to the value's own.
const MAX_ADDED_TEXT: usize = MAX_VALUE_BYTES;

/// Bytes that calls may look at in all; a call on a remembered text costs few bytes of pickle, whatever the text's
/// size.
const MAX_WORK: usize = 4 * MAX_VALUE_BYTES;

/// Longest name of a class in a message.
const MAX_NAME_LEN: usize = 120;

/// Highest protocol there is.
const MAX_PROTOCOL: u8 = 5;

/// Why a pickle was not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    #[error("the pickle is cut short")]
    Truncated,
    #[error("pickle protocol {version} is not known")]
    Protocol { version: u8 },
    #[error("pickle opcode {opcode:#04x} is unknown or never part of plain data")]
    Opcode { opcode: u8 },
    #[error("the pickle takes more from its stack than is there")]
    Stack,
    #[error("the pickle refers to something it never remembered")]
    Memo,
    #[error("the pickle holds a text that is not valid")]
    Text,
    #[error("the pickle holds a number that is not valid")]
    Number,
    #[error("the pickle adds to an object of type {type_name}")]
    Container { type_name: &'static str },
    #[error("the pickle has a dictionary key of type {type_name}")]
    Key { type_name: &'static str },
    #[error("the pickle calls {callee} in a way that plain data never does")]
    Call { callee: &'static str },
    #[error("the pickle goes on after its end")]
    Trailing,
    #[error("the pickle is over the limit of {limit} {what}")]
    Limit { what: &'static str, limit: usize },
    #[error("the pickle holds an object of type {type_name}")]
    Opaque { type_name: String },
    #[error("the pickle is of type {type_name}, not dict")]
    NotDict { type_name: &'static str },
}

impl From<HeapFull> for PickleError {
    fn from(_: HeapFull) -> PickleError {
        PickleError::Limit {
            what: "objects",
            limit: MAX_OBJECTS,
        }
    }
}

/// What calls may still look at.
struct Work(usize);

impl Work {
    fn charge(&mut self, bytes: usize) -> Result<(), PickleError> {
        self.0 = self.0.checked_sub(bytes).ok_or(PickleError::Limit {
            what: "bytes of work",
            limit: MAX_WORK,
        })?;
        Ok(())
    }
}

fn check_text_size(heap: &Heap) -> Result<(), PickleError> {
    let limit = MAX_VALUE_BYTES + MAX_ADDED_TEXT;
    if heap.text.len() > limit {
        Err(PickleError::Limit {
            what: "bytes of text",
            limit,
        })
    } else {
        Ok(())
    }
}

/// Reads a pickled session.
///
/// # Errors
/// [`PickleError`] where the pickle is broken, over a limit, holds more than plain data, or is no dictionary.
pub fn parse(value: Vec<u8>) -> Result<Dict, PickleError> {
    if value.len() > MAX_VALUE_BYTES {
        return Err(PickleError::Limit {
            what: "bytes",
            limit: MAX_VALUE_BYTES,
        });
    }
    let mut machine = Machine::new(value);
    let root = machine.run()?;
    let heap = machine.heap;
    match heap.get(root) {
        Object::Dict(_) => Ok(Dict { heap, root }),
        other => Err(PickleError::NotDict {
            type_name: other.type_name(),
        }),
    }
}

/// Whether an integer of that many bytes may still have few enough digits for JSON.
pub(crate) fn is_printable_int(span: Span) -> bool {
    span.len() <= MAX_INT_BYTES
}
