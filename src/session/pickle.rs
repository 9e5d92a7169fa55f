//! Python pickles, protocols 0 to 5, read as data: a parser that never executes anything.
//!
//! What a pickle may hold here is plain data: numbers, texts, containers, and the values in [`global`]. Any other class
//! or function makes the whole session opaque, even where its result is dropped: the reason names it, nothing imports it.
//! Everything is bounded: the value's size, its objects, the stack, the memo, and the work that calls can ask for. There
//! is no recursion, so nesting costs no stack; how deep it goes is judged when JSON is written.
//!
//! Not read, since no Django backend writes it: the extension registry, persistent ids, out-of-band buffers, bytes after
//! STOP, a stack with more than one object at STOP. A FRAME must fit the value and is otherwise passed over, as
//! CPython's own reader does.
//!
//! Why not the crate `serde-pickle`: it resolves a shared reference by copying, so four hundred bytes expand to 2^60
//! elements before a limit could act, it knows no limits at all; a cycle and a lone surrogate are errors; calls become
//! nothing or an error without the type's name, so that a datetime, a SafeString and an attack look the same; and 64-bit
//! and larger integers, and which of two equal dict keys came last, are lost on the way into serde's data model.

mod datetime;
pub(crate) mod global;
mod text;

use global::{Global, Made};

pub(crate) use datetime::isoformat;
pub(crate) use text::push_code_point;

use super::object::{Dict, Heap, HeapFull, Id, MAX_INT_BYTES, MAX_OBJECTS, MAX_VALUE_BYTES, Object, Span};

/// Most entries on the stack, and most marks.
const MAX_STACK: usize = MAX_OBJECTS;

/// Highest memo index. Picklers count upwards, so an index beyond the number of objects is made up.
const MAX_MEMO: usize = MAX_OBJECTS;

/// Bytes that unescaped texts may add to the value's own.
const MAX_ADDED_TEXT: usize = MAX_VALUE_BYTES;

/// Bytes that calls may look at in all; a call on a remembered text costs few bytes of pickle, whatever the text's size.
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
    let end = value.len();
    // A typical pickle has an object per ten bytes or so.
    let mut objects = Vec::with_capacity((end / 10).clamp(8, 256));
    objects.extend([Object::None, Object::Bool(true), Object::Bool(false)]);
    let mut machine = Machine {
        heap: Heap { text: value, objects },
        pos: 0,
        end,
        stack: Vec::with_capacity(16),
        marks: Vec::new(),
        memo: Vec::with_capacity(16),
        remembered: 0,
        work: Work(MAX_WORK),
    };
    let root = machine.run()?;
    let heap = machine.heap;
    match heap.get(root) {
        Object::Dict(_) => Ok(Dict { heap, root }),
        other => Err(PickleError::NotDict {
            type_name: other.type_name(),
        }),
    }
}

const NONE: Id = 0;
const TRUE: Id = 1;
const FALSE: Id = 2;
/// A memo slot that nothing was put in.
const VACANT: Id = Id::MAX;

struct Machine {
    heap: Heap,
    pos: usize,
    /// End of the pickle in the heap's text; unescaped texts follow it.
    end: usize,
    stack: Vec<Id>,
    /// Lengths that the stack had at each MARK.
    marks: Vec<u32>,
    memo: Vec<Id>,
    /// How many memo slots are in use: MEMOIZE takes the slot of that number.
    remembered: usize,
    work: Work,
}

impl Machine {
    fn run(&mut self) -> Result<Id, PickleError> {
        loop {
            let opcode = self.byte()?;
            match opcode {
                0x80 => match self.byte()? {
                    0..=MAX_PROTOCOL => {}
                    version => return Err(PickleError::Protocol { version }),
                },
                // FRAME
                0x95 => {
                    let len = self.length::<8>()?;
                    if len > self.end - self.pos {
                        return Err(PickleError::Truncated);
                    }
                }
                b'.' => return self.stop(),
                b'(' => {
                    if self.marks.len() >= MAX_STACK {
                        return Err(PickleError::Limit {
                            what: "marks",
                            limit: MAX_STACK,
                        });
                    }
                    // The stack is bounded by MAX_STACK, far below 2^32.
                    self.marks.push(self.stack.len() as u32);
                }
                b'0' => {
                    if self.marks.last().is_some_and(|mark| *mark as usize == self.stack.len()) {
                        self.marks.pop();
                    } else {
                        self.pop()?;
                    }
                }
                b'1' => {
                    let mark = self.mark()?;
                    self.stack.truncate(mark);
                }
                b'2' => {
                    let top = self.top()?;
                    self.push_id(top)?;
                }

                b'N' => self.push_id(NONE)?,
                0x88 => self.push_id(TRUE)?,
                0x89 => self.push_id(FALSE)?,
                b'J' => {
                    let number = i32::from_le_bytes(self.array()?);
                    self.push(Object::Int(number.into()))?;
                }
                b'K' => {
                    let number = self.byte()?;
                    self.push(Object::Int(number.into()))?;
                }
                b'M' => {
                    let number = u16::from_le_bytes(self.array()?);
                    self.push(Object::Int(number.into()))?;
                }
                0x8a => {
                    let len = self.length::<1>()?;
                    self.long(len)?;
                }
                0x8b => {
                    let len = i32::from_le_bytes(self.array()?);
                    self.long(usize::try_from(len).map_err(|_| PickleError::Number)?)?;
                }
                b'G' => {
                    let number = f64::from_be_bytes(self.array()?);
                    self.push(Object::Float(number))?;
                }
                b'I' => self.int_line()?,
                b'L' => {
                    let line = self.line()?;
                    let digits = self.heap.bytes(line);
                    let line = if digits.ends_with(b"L") {
                        Span {
                            end: line.end - 1,
                            ..line
                        }
                    } else {
                        line
                    };
                    self.decimal(line)?;
                }
                b'F' => {
                    let line = self.line()?;
                    let text = std::str::from_utf8(self.heap.bytes(line)).map_err(|_| PickleError::Number)?;
                    let number = text.trim().parse().map_err(|_| PickleError::Number)?;
                    self.push(Object::Float(number))?;
                }

                0x8c => self.unicode::<1>()?,
                b'X' => self.unicode::<4>()?,
                0x8d => self.unicode::<8>()?,
                b'V' => self.line_text(text::unescape)?,
                b'S' => self.line_text(text::unquote)?,
                b'U' => self.ascii::<1>()?,
                b'T' => self.ascii::<4>()?,
                b'C' => self.byte_string::<1>(Object::Bytes)?,
                b'B' => self.byte_string::<4>(Object::Bytes)?,
                0x8e => self.byte_string::<8>(Object::Bytes)?,
                0x96 => self.byte_string::<8>(|_| Object::Other("bytearray"))?,

                b']' => self.push(Object::Seq {
                    tuple: false,
                    items: Vec::new(),
                })?,
                b')' => self.push(Object::Seq {
                    tuple: true,
                    items: Vec::new(),
                })?,
                b'}' => self.push(Object::Dict(Vec::new()))?,
                0x8f => self.push(Object::Other("set"))?,
                b'l' => {
                    let items = self.pop_mark()?;
                    self.push(Object::Seq { tuple: false, items })?;
                }
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Object::Seq { tuple: true, items })?;
                }
                0x85..=0x87 => {
                    let count = usize::from(opcode - 0x84);
                    let at = self.stack.len().checked_sub(count).filter(|at| *at >= self.floor());
                    let items = self.stack.split_off(at.ok_or(PickleError::Stack)?);
                    self.push(Object::Seq { tuple: true, items })?;
                }
                0x91 => {
                    self.pop_mark()?;
                    self.push(Object::Other("frozenset"))?;
                }
                b'd' => {
                    let mark = self.mark()?;
                    self.push(Object::Dict(Vec::new()))?;
                    let dict = self.pop()?;
                    self.set_items(dict, mark)?;
                    self.push_id(dict)?;
                }
                b'a' => {
                    let item = self.pop()?;
                    let list = self.top()?;
                    self.list(list)?.push(item);
                }
                b'e' => {
                    let mark = self.mark()?;
                    let list = self.below(mark)?;
                    let items = self.stack.split_off(mark);
                    self.list(list)?.extend(items);
                }
                b's' => {
                    let at = self.stack.len().checked_sub(2).filter(|at| *at >= self.floor());
                    let at = at.ok_or(PickleError::Stack)?;
                    let dict = self.below(at)?;
                    self.set_items(dict, at)?;
                }
                b'u' => {
                    let mark = self.mark()?;
                    let dict = self.below(mark)?;
                    self.set_items(dict, mark)?;
                }
                // ADDITEMS. A set is never storable, so what it holds is not kept.
                0x90 => {
                    let mark = self.mark()?;
                    let set = self.below(mark)?;
                    match self.heap.get(set) {
                        Object::Other("set") => self.stack.truncate(mark),
                        other => {
                            return Err(PickleError::Container {
                                type_name: other.type_name(),
                            });
                        }
                    }
                }

                b'p' => {
                    let index = self.index_line()?;
                    self.put(index)?;
                }
                b'q' => {
                    let index = self.length::<1>()?;
                    self.put(index)?;
                }
                b'r' => {
                    let index = self.length::<4>()?;
                    self.put(index)?;
                }
                0x94 => self.put(self.remembered)?,
                b'g' => {
                    let index = self.index_line()?;
                    self.recall(index)?;
                }
                b'h' => {
                    let index = self.length::<1>()?;
                    self.recall(index)?;
                }
                b'j' => {
                    let index = self.length::<4>()?;
                    self.recall(index)?;
                }

                b'c' | b'i' => {
                    let (module, name) = (self.line()?, self.line()?);
                    let global = self.find(module, name)?;
                    // INST makes instances of old-style classes, which plain data has none of.
                    if opcode == b'i' {
                        return Err(PickleError::Opcode { opcode });
                    }
                    self.push(Object::Global(global))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Object::Str(module), Object::Str(name)) = (self.heap.get(module), self.heap.get(name)) else {
                        return Err(PickleError::Opcode { opcode });
                    };
                    let global = self.find(*module, *name)?;
                    self.push(Object::Global(global))?;
                }
                b'R' | 0x81 => self.call(opcode)?,
                b'b' => self.build()?,
                opcode => return Err(PickleError::Opcode { opcode }),
            }
        }
    }

    fn stop(&mut self) -> Result<Id, PickleError> {
        let root = self.pop()?;
        if !self.stack.is_empty() || !self.marks.is_empty() || self.pos != self.end {
            return Err(PickleError::Trailing);
        }
        Ok(root)
    }

    // Bytes.

    fn take(&mut self, len: usize) -> Result<Span, PickleError> {
        if len > self.end - self.pos {
            return Err(PickleError::Truncated);
        }
        let start = self.pos;
        self.pos += len;
        Ok(Span { start, end: self.pos })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let span = self.take(N)?;
        self.heap.bytes(span).try_into().map_err(|_| PickleError::Truncated)
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// A little-endian count of `N` bytes. What does not fit a `usize` is longer than any value.
    fn length<const N: usize>(&mut self) -> Result<usize, PickleError> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.array::<N>()?);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| PickleError::Truncated)
    }

    /// The text up to the next line feed, which is passed over.
    fn line(&mut self) -> Result<Span, PickleError> {
        let rest = &self.heap.text[self.pos..self.end];
        let len = memchr::memchr(b'\n', rest).ok_or(PickleError::Truncated)?;
        let span = self.take(len)?;
        self.pos += 1;
        Ok(span)
    }

    // Scalars.

    fn unicode<const N: usize>(&mut self) -> Result<(), PickleError> {
        let len = self.length::<N>()?;
        let span = self.take(len)?;
        text::check_utf8(self.heap.bytes(span))?;
        self.push(Object::Str(span))
    }

    /// A Python 2 `str`, which Python 3 reads as ASCII.
    fn ascii<const N: usize>(&mut self) -> Result<(), PickleError> {
        let len = self.length::<N>()?;
        let span = self.take(len)?;
        if !self.heap.bytes(span).is_ascii() {
            return Err(PickleError::Text);
        }
        self.push(Object::Str(span))
    }

    fn byte_string<const N: usize>(&mut self, object: fn(Span) -> Object) -> Result<(), PickleError> {
        let len = self.length::<N>()?;
        let span = self.take(len)?;
        self.push(object(span))
    }

    fn line_text(&mut self, decode: fn(&[u8], &mut Vec<u8>) -> Result<(), PickleError>) -> Result<(), PickleError> {
        let line = self.line()?;
        let mut out = Vec::new();
        decode(self.heap.bytes(line), &mut out)?;
        let start = self.heap.text.len();
        self.heap.text.extend_from_slice(&out);
        check_text_size(&self.heap)?;
        self.push(Object::Str(Span {
            start,
            end: self.heap.text.len(),
        }))
    }

    fn long(&mut self, len: usize) -> Result<(), PickleError> {
        let span = self.take(len)?;
        let object = self.heap.int_object(span);
        self.push(object)
    }

    fn int_line(&mut self) -> Result<(), PickleError> {
        let line = self.line()?;
        match self.heap.bytes(line) {
            b"00" => self.push_id(FALSE),
            b"01" => self.push_id(TRUE),
            _ => self.decimal(line),
        }
    }

    fn decimal(&mut self, line: Span) -> Result<(), PickleError> {
        let text = std::str::from_utf8(self.heap.bytes(line))
            .map_err(|_| PickleError::Number)?
            .trim();
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(PickleError::Number);
        }
        let text = text.to_owned();
        let object = self.heap.int_from_decimal(&text).ok_or(PickleError::Number)?;
        check_text_size(&self.heap)?;
        self.push(object)
    }

    // Stack. What lies below the last mark can be reached only through that mark.

    fn floor(&self) -> usize {
        self.marks.last().map_or(0, |mark| *mark as usize)
    }

    fn push(&mut self, object: Object) -> Result<(), PickleError> {
        let id = self.heap.push(object)?;
        self.push_id(id)
    }

    fn push_id(&mut self, id: Id) -> Result<(), PickleError> {
        if self.stack.len() >= MAX_STACK {
            return Err(PickleError::Limit {
                what: "stack entries",
                limit: MAX_STACK,
            });
        }
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn top(&self) -> Result<Id, PickleError> {
        self.below(self.stack.len())
    }

    /// The entry just below `at`, above the last mark.
    fn below(&self, at: usize) -> Result<Id, PickleError> {
        let index = at
            .checked_sub(1)
            .filter(|index| *index >= self.floor())
            .ok_or(PickleError::Stack)?;
        self.stack.get(index).copied().ok_or(PickleError::Stack)
    }

    /// Takes the last mark away and gives the stack's length at it.
    fn mark(&mut self) -> Result<usize, PickleError> {
        self.marks.pop().map(|mark| mark as usize).ok_or(PickleError::Stack)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.mark()?;
        Ok(self.stack.split_off(mark))
    }

    // Memo.

    fn index_line(&mut self) -> Result<usize, PickleError> {
        let line = self.line()?;
        let text = std::str::from_utf8(self.heap.bytes(line)).map_err(|_| PickleError::Memo)?;
        text.trim().parse().map_err(|_| PickleError::Memo)
    }

    fn put(&mut self, index: usize) -> Result<(), PickleError> {
        let top = self.top()?;
        if index >= MAX_MEMO {
            return Err(PickleError::Limit {
                what: "memo entries",
                limit: MAX_MEMO,
            });
        }
        if index >= self.memo.len() {
            self.memo.resize(index + 1, VACANT);
        }
        if self.memo[index] == VACANT {
            self.remembered += 1;
        }
        self.memo[index] = top;
        Ok(())
    }

    fn recall(&mut self, index: usize) -> Result<(), PickleError> {
        match self.memo.get(index) {
            Some(&id) if id != VACANT => self.push_id(id),
            _ => Err(PickleError::Memo),
        }
    }

    // Containers.

    fn list(&mut self, id: Id) -> Result<&mut Vec<Id>, PickleError> {
        match &mut self.heap.objects[id as usize] {
            Object::Seq { tuple: false, items } => Ok(items),
            other => Err(PickleError::Container {
                type_name: other.type_name(),
            }),
        }
    }

    /// Moves the pairs from `at` upwards into a dictionary.
    fn set_items(&mut self, dict: Id, at: usize) -> Result<(), PickleError> {
        let (pairs, []) = self.stack[at..].as_chunks::<2>() else {
            return Err(PickleError::Stack);
        };
        for [key, _] in pairs {
            // A tuple may hold something unhashable; that shows where it matters, since no tuple key is storable.
            let key = self.heap.get(*key);
            if matches!(
                key,
                Object::Seq { tuple: false, .. } | Object::Dict(_) | Object::Other("set" | "bytearray")
            ) {
                return Err(PickleError::Key {
                    type_name: key.type_name(),
                });
            }
        }
        match &mut self.heap.objects[dict as usize] {
            Object::Dict(items) => items.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            other => {
                return Err(PickleError::Container {
                    type_name: other.type_name(),
                });
            }
        }
        self.stack.truncate(at);
        Ok(())
    }

    // Classes.

    fn find(&self, module: Span, name: Span) -> Result<Global, PickleError> {
        let (module, name) = (self.heap.bytes(module), self.heap.bytes(name));
        Global::find(module, name).ok_or_else(|| PickleError::Opaque {
            type_name: printable(module, name),
        })
    }

    /// REDUCE and NEWOBJ: both spell "this callable with these arguments".
    fn call(&mut self, opcode: u8) -> Result<(), PickleError> {
        let (args, callee) = (self.pop()?, self.pop()?);
        let (Object::Global(global), Object::Seq { tuple: true, items }) = (self.heap.get(callee), self.heap.get(args))
        else {
            return Err(PickleError::Opcode { opcode });
        };
        let (global, args) = (*global, items.get(..4).unwrap_or(items).to_vec());
        match global.call(&args, &mut self.heap, &mut self.work)? {
            Made::New(object) => self.push(object),
            Made::Same(id) => self.push_id(id),
        }
    }

    /// BUILD. Of the known values only a UUID has a state, and its state is a dictionary.
    fn build(&mut self) -> Result<(), PickleError> {
        let state = self.pop()?;
        match (self.heap.get(self.top()?), self.heap.get(state)) {
            (Object::Uuid, Object::Dict(_)) => Ok(()),
            (other, _) => Err(PickleError::Container {
                type_name: other.type_name(),
            }),
        }
    }
}

/// A class's full name for a message. A name comes from the value, so whatever no Python name has is masked.
fn printable(module: &[u8], name: &[u8]) -> String {
    let bytes = module.iter().chain(b".").chain(name).take(MAX_NAME_LEN);
    bytes
        .map(|&b| {
            if b.is_ascii_alphanumeric() || b"_.<>".contains(&b) {
                char::from(b)
            } else {
                '?'
            }
        })
        .collect()
}

/// Whether an integer of that many bytes may still have few enough digits for JSON.
pub(crate) fn is_printable_int(span: Span) -> bool {
    span.len() <= MAX_INT_BYTES
}
