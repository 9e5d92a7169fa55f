//! What a pickle works on: its bytes, its stack, its memo, and the objects it makes.

use super::super::object::{Heap, Id, Object, Span};
use super::{MAX_MEMO, MAX_STACK, MAX_WORK, PickleError, Work, check_text_size, text};

pub(super) const NONE: Id = 0;
pub(super) const TRUE: Id = 1;
pub(super) const FALSE: Id = 2;
/// A memo slot that nothing was put in.
const VACANT: Id = Id::MAX;

pub(super) struct Machine {
    pub(super) heap: Heap,
    pub(super) pos: usize,
    /// End of the pickle in the heap's text; unescaped texts follow it.
    pub(super) end: usize,
    pub(super) stack: Vec<Id>,
    /// Lengths that the stack had at each MARK.
    pub(super) marks: Vec<u32>,
    memo: Vec<Id>,
    /// How many memo slots are in use: MEMOIZE takes the slot of that number.
    pub(super) remembered: usize,
    pub(super) work: Work,
}

impl Machine {
    pub(super) fn new(value: Vec<u8>) -> Machine {
        let end = value.len();
        // A typical pickle has an object per ten bytes or so.
        let mut objects = Vec::with_capacity((end / 10).clamp(8, 256));
        objects.extend([Object::None, Object::Bool(true), Object::Bool(false)]);
        Machine {
            heap: Heap { text: value, objects },
            pos: 0,
            end,
            stack: Vec::with_capacity(16),
            marks: Vec::new(),
            memo: Vec::with_capacity(16),
            remembered: 0,
            work: Work(MAX_WORK),
        }
    }

    // Bytes.

    pub(super) fn take(&mut self, len: usize) -> Result<Span, PickleError> {
        if len > self.end - self.pos {
            return Err(PickleError::Truncated);
        }
        let start = self.pos;
        self.pos += len;
        Ok(Span { start, end: self.pos })
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let span = self.take(N)?;
        self.heap.bytes(span).try_into().map_err(|_| PickleError::Truncated)
    }

    pub(super) fn byte(&mut self) -> Result<u8, PickleError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// A little-endian count of `N` bytes. What does not fit a `usize` is longer than any value.
    pub(super) fn length<const N: usize>(&mut self) -> Result<usize, PickleError> {
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&self.array::<N>()?);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| PickleError::Truncated)
    }

    /// The text up to the next line feed, which is passed over.
    pub(super) fn line(&mut self) -> Result<Span, PickleError> {
        let rest = &self.heap.text[self.pos..self.end];
        let len = memchr::memchr(b'\n', rest).ok_or(PickleError::Truncated)?;
        let span = self.take(len)?;
        self.pos += 1;
        Ok(span)
    }

    // Scalars.

    pub(super) fn unicode<const N: usize>(&mut self) -> Result<(), PickleError> {
        let len = self.length::<N>()?;
        let span = self.take(len)?;
        text::check_utf8(self.heap.bytes(span))?;
        self.push(Object::Str(span))
    }

    /// A Python 2 `str`, which Python 3 reads as ASCII.
    pub(super) fn ascii<const N: usize>(&mut self) -> Result<(), PickleError> {
        let len = self.length::<N>()?;
        let span = self.take(len)?;
        if !self.heap.bytes(span).is_ascii() {
            return Err(PickleError::Text);
        }
        self.push(Object::Str(span))
    }

    pub(super) fn byte_string<const N: usize>(&mut self, object: fn(Span) -> Object) -> Result<(), PickleError> {
        let len = self.length::<N>()?;
        let span = self.take(len)?;
        self.push(object(span))
    }

    pub(super) fn line_text(
        &mut self,
        decode: fn(&[u8], &mut Vec<u8>) -> Result<(), PickleError>,
    ) -> Result<(), PickleError> {
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

    pub(super) fn long(&mut self, len: usize) -> Result<(), PickleError> {
        let span = self.take(len)?;
        let object = self.heap.int_object(span);
        self.push(object)
    }

    pub(super) fn int_line(&mut self) -> Result<(), PickleError> {
        let line = self.line()?;
        match self.heap.bytes(line) {
            b"00" => self.push_id(FALSE),
            b"01" => self.push_id(TRUE),
            _ => self.decimal(line),
        }
    }

    pub(super) fn decimal(&mut self, line: Span) -> Result<(), PickleError> {
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

    pub(super) fn floor(&self) -> usize {
        self.marks.last().map_or(0, |mark| *mark as usize)
    }

    pub(super) fn push(&mut self, object: Object) -> Result<(), PickleError> {
        let id = self.heap.push(object)?;
        self.push_id(id)
    }

    pub(super) fn push_id(&mut self, id: Id) -> Result<(), PickleError> {
        if self.stack.len() >= MAX_STACK {
            return Err(PickleError::Limit {
                what: "stack entries",
                limit: MAX_STACK,
            });
        }
        self.stack.push(id);
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Result<Id, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    pub(super) fn top(&self) -> Result<Id, PickleError> {
        self.below(self.stack.len())
    }

    /// The entry just below `at`, above the last mark.
    pub(super) fn below(&self, at: usize) -> Result<Id, PickleError> {
        let index = at
            .checked_sub(1)
            .filter(|index| *index >= self.floor())
            .ok_or(PickleError::Stack)?;
        self.stack.get(index).copied().ok_or(PickleError::Stack)
    }

    /// Takes the last mark away and gives the stack's length at it.
    pub(super) fn mark(&mut self) -> Result<usize, PickleError> {
        self.marks.pop().map(|mark| mark as usize).ok_or(PickleError::Stack)
    }

    pub(super) fn pop_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.mark()?;
        Ok(self.stack.split_off(mark))
    }

    // Memo.

    pub(super) fn index_line(&mut self) -> Result<usize, PickleError> {
        let line = self.line()?;
        let text = std::str::from_utf8(self.heap.bytes(line)).map_err(|_| PickleError::Memo)?;
        text.trim().parse().map_err(|_| PickleError::Memo)
    }

    pub(super) fn put(&mut self, index: usize) -> Result<(), PickleError> {
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

    pub(super) fn recall(&mut self, index: usize) -> Result<(), PickleError> {
        match self.memo.get(index) {
            Some(&id) if id != VACANT => self.push_id(id),
            _ => Err(PickleError::Memo),
        }
    }
}
