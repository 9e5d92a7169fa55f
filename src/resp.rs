//! RESP2 and RESP3: where a frame ends and what it holds. Bytes in, facts out; nothing here reads a socket.
