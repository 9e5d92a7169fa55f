//! What each opcode does.

use super::super::object::{Id, Object, Span};
use super::global::{Global, Made};
use super::machine::{FALSE, Machine, NONE, TRUE};
use super::{MAX_NAME_LEN, MAX_PROTOCOL, MAX_STACK, PickleError, text};

impl Machine {
    /// Runs the pickle to its STOP and gives the object that it made.
    pub(super) fn run(&mut self) -> Result<Id, PickleError> {
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
