//! What a command is: its keys, whether it writes, whether it changes the connection. As data.
