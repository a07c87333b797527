//! A reader of pickles: it keeps what a pickle says and does nothing that it asks for.

use std::collections::HashMap;

use super::value::{Call, Node, Pickle, Value};
use crate::tensor::bytes::Bytes;

/// A text longer than this is not kept: no name, and nothing that stands beside a state dict, is as long.
const LONGEST: u64 = 1 << 20;

/// A line of one of the old text opcodes.
const LONGEST_LINE: usize = 1 << 20;

/// What the values of a pickle may take in memory, beyond a multiple of its length: a byte can make a node.
const LEAST_MEMORY: u64 = 64 << 20;
const MEMORY_PER_BYTE: u64 = 8;
const MOST_MEMORY: u64 = 1 << 30;

/// About what a node takes.
const NODE_BYTES: u64 = 64;

/// Reads one pickle, up to its end.
///
/// # Errors
/// A sentence on what is wrong with it.
pub(super) fn read(bytes: &mut Bytes<'_>) -> Result<Pickle, String> {
    let memory = LEAST_MEMORY.saturating_add(bytes.left().saturating_mul(MEMORY_PER_BYTE));
    let mut machine = Machine {
        bytes,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        memory: memory.min(MOST_MEMORY),
    };
    loop {
        let op = machine.bytes.byte()?;
        if op == b'.' {
            let root = machine.pop()?;
            return Ok(Pickle {
                nodes: machine.nodes,
                root,
            });
        }
        machine.step(op)?;
    }
}

struct Machine<'a, 'b> {
    bytes: &'a mut Bytes<'b>,
    nodes: Vec<Node>,
    stack: Vec<Value>,
    /// How long the stack was at each mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    /// How much memory may still be used.
    memory: u64,
}

impl Machine<'_, '_> {
    /// One opcode; the groups stand as in Python's `pickletools`. (It is a table, and longer than other functions for that.)
    fn step(&mut self, op: u8) -> Result<(), String> {
        match op {
            // The frame of a pickle: versions, frames, marks.
            0x80 => {
                let version = self.bytes.byte()?;
                if version > 5 {
                    return Err(format!(
                        "its pickle has protocol {version}; up to 5 are known"
                    ));
                }
            }
            0x95 => drop(self.bytes.array::<8>()?),
            b'(' => {
                self.spend(8)?;
                self.marks.push(self.stack.len());
            }
            b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = *self.stack.last().ok_or_else(underflow)?;
                self.push(top)?;
            }
            // Numbers.
            b'N' => self.push(Value::None)?,
            0x88 | 0x89 => self.push(Value::Bool(op == 0x88))?,
            b'J' => {
                let n = i32::from_le_bytes(self.bytes.array()?);
                self.push(Value::Int(n.into()))?;
            }
            b'K' => {
                let n = self.bytes.byte()?;
                self.push(Value::Int(n.into()))?;
            }
            b'M' => {
                let n = u16::from_le_bytes(self.bytes.array()?);
                self.push(Value::Int(n.into()))?;
            }
            b'G' => {
                let n = f64::from_be_bytes(self.bytes.array()?);
                self.push(Value::Float(n))?;
            }
            0x8a | 0x8b => self.long(op)?,
            b'I' | b'L' | b'F' => self.number_in_a_line(op)?,
            // Texts.
            b'X' | b'T' | b'U' | 0x8c | 0x8d => self.text(op)?,
            b'B' | b'C' | 0x8e | 0x96 => {
                let len = self.length(op)?;
                self.bytes.skip(len)?;
                self.push_node(Node::Bytes)?;
            }
            b'S' | b'V' => {
                let line = self.bytes.line(LONGEST_LINE)?;
                let line = String::from_utf8_lossy(&line);
                let line = line.trim_end_matches('\r');
                let quoted = |q| line.strip_prefix(q)?.strip_suffix(q);
                let bare = ['\'', '"'].into_iter().find_map(quoted).unwrap_or(line);
                self.keep_text(bare)?;
            }
            // Tuples, lists, dicts, sets.
            b')' => self.push_node(Node::Tuple(Box::new([])))?,
            0x85..=0x87 => {
                let from = self.below(usize::from(op - 0x84))?;
                let values = self.stack.split_off(from);
                self.tuple(values)?;
            }
            b't' => {
                let values = self.pop_to_mark()?;
                self.tuple(values)?;
            }
            b']' => self.push_node(Node::List(Vec::new()))?,
            b'l' => {
                let values = self.pop_to_mark()?;
                self.push_node(Node::List(values))?;
            }
            b'}' => self.push_node(Node::Dict(Vec::new()))?,
            b'd' => {
                let values = self.pop_to_mark()?;
                self.push_node(Node::Dict(Vec::new()))?;
                self.set_items(&values)?;
            }
            0x8f => self.push_node(Node::Set(Vec::new()))?,
            0x91 => {
                let values = self.pop_to_mark()?;
                self.push_node(Node::Set(values))?;
            }
            b'a' => {
                let value = self.pop()?;
                self.append(&[value])?;
            }
            b'e' | 0x90 => {
                let values = self.pop_to_mark()?;
                self.append(&values)?;
            }
            b's' => {
                let from = self.below(2)?;
                let values = self.stack.split_off(from);
                self.set_items(&values)?;
            }
            b'u' => {
                let values = self.pop_to_mark()?;
                self.set_items(&values)?;
            }
            // The memo.
            b'q' => {
                let i = self.bytes.byte()?;
                self.put(i.into())?;
            }
            b'r' => {
                let i = u32::from_le_bytes(self.bytes.array()?);
                self.put(i)?;
            }
            0x94 => self.put(self.memo.len() as u32)?,
            b'p' => {
                let i = self.index_in_a_line()?;
                self.put(i)?;
            }
            b'h' => {
                let i = self.bytes.byte()?;
                self.get(i.into())?;
            }
            b'j' => {
                let i = u32::from_le_bytes(self.bytes.array()?);
                self.get(i)?;
            }
            b'g' => {
                let i = self.index_in_a_line()?;
                self.get(i)?;
            }
            // Classes and objects.
            b'c' => {
                let [module, name] = [self.name_in_a_line()?, self.name_in_a_line()?];
                self.push_global(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let [module, name] = [self.name_of(module)?, self.name_of(name)?];
                self.push_global(&module, &name)?;
            }
            b'R' | 0x81 => {
                let (arguments, callee) = (self.pop()?, self.pop()?);
                self.call(callee, arguments)?;
            }
            0x92 => {
                let (_, arguments, callee) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(callee, arguments)?;
            }
            b'i' => {
                let [module, name] = [self.name_in_a_line()?, self.name_in_a_line()?];
                let arguments = self.pop_to_mark()?;
                self.push_global(&module, &name)?;
                let callee = self.pop()?;
                self.tuple(arguments)?;
                let arguments = self.pop()?;
                self.call(callee, arguments)?;
            }
            b'o' => {
                let mut arguments = self.pop_to_mark()?;
                if arguments.is_empty() {
                    return Err(underflow());
                }
                let callee = arguments.remove(0);
                self.tuple(arguments)?;
                let arguments = self.pop()?;
                self.call(callee, arguments)?;
            }
            b'b' => {
                let state = self.pop()?;
                if let Some(Node::Call(call)) = self.top_node()? {
                    call.state = Some(state);
                }
            }
            // References to what is outside.
            b'P' => {
                let line = self.bytes.line(LONGEST_LINE)?;
                self.keep_text(&String::from_utf8_lossy(&line))?;
                let id = self.pop()?;
                self.push_node(Node::Persistent(id))?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.push_node(Node::Persistent(id))?;
            }
            0x82..=0x84 => {
                return Err(
                    "it uses an extension code, which only the program that wrote it can tell"
                        .to_owned(),
                );
            }
            0x97 | 0x98 => return Err("it refers to a buffer outside of the file".to_owned()),
            _ => {
                return Err(format!(
                    "it is no pickle at byte {}: there is no opcode {op:#04x}",
                    self.bytes.at() - 1
                ));
            }
        }
        Ok(())
    }

    fn spend(&mut self, bytes: u64) -> Result<(), String> {
        let left = self.memory.checked_sub(bytes);
        self.memory = left.ok_or("its pickle holds more values than any checkpoint of its size")?;
        Ok(())
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        self.spend(size_of::<Value>() as u64)?;
        self.stack.push(value);
        Ok(())
    }

    fn push_node(&mut self, node: Node) -> Result<(), String> {
        self.spend(NODE_BYTES)?;
        let i = u32::try_from(self.nodes.len()).map_err(|_| underflow())?;
        self.nodes.push(node);
        self.push(Value::Node(i))
    }

    fn pop(&mut self) -> Result<Value, String> {
        // Nothing is taken from below a mark.
        let from = self.below(1)?;
        self.stack
            .get(from)
            .copied()
            .inspect(|_| self.stack.truncate(from))
            .ok_or_else(underflow)
    }

    /// Where the last `n` values begin.
    fn below(&self, n: usize) -> Result<usize, String> {
        let least = self.marks.last().copied().unwrap_or(0);
        let from = self
            .stack
            .len()
            .checked_sub(n)
            .filter(|from| *from >= least);
        from.ok_or_else(underflow)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().filter(|mark| *mark <= self.stack.len());
        mark.map(|mark| self.stack.split_off(mark))
            .ok_or_else(underflow)
    }

    fn tuple(&mut self, values: Vec<Value>) -> Result<(), String> {
        self.spend((values.len() * size_of::<Value>()) as u64)?;
        self.push_node(Node::Tuple(values.into()))
    }

    fn call(&mut self, callee: Value, arguments: Value) -> Result<(), String> {
        self.spend(size_of::<Call>() as u64)?;
        self.push_node(Node::Call(Box::new(Call {
            callee,
            arguments,
            list: Vec::new(),
            items: Vec::new(),
            state: None,
        })))
    }

    /// The node at the top of the stack; none if a number is there.
    fn top_node(&mut self) -> Result<Option<&mut Node>, String> {
        match self.stack.last().ok_or_else(underflow)? {
            Value::Node(i) => Ok(self.nodes.get_mut(*i as usize)),
            _ => Ok(None),
        }
    }

    fn append(&mut self, values: &[Value]) -> Result<(), String> {
        self.spend(size_of_val(values) as u64)?;
        match self.top_node()? {
            Some(Node::List(list) | Node::Set(list)) => list.extend(values),
            Some(Node::Call(call)) => call.list.extend(values),
            _ => return Err("it appends to what is no list".to_owned()),
        }
        Ok(())
    }

    fn set_items(&mut self, values: &[Value]) -> Result<(), String> {
        self.spend(size_of_val(values) as u64)?;
        let (pairs, rest) = values.as_chunks::<2>();
        let pairs = pairs.iter().map(|[key, value]| (*key, *value));
        match self.top_node()? {
            _ if !rest.is_empty() => return Err("it sets a key without a value".to_owned()),
            Some(Node::Dict(items)) => items.extend(pairs),
            Some(Node::Call(call)) => call.items.extend(pairs),
            _ => return Err("it sets a key of what is no dict".to_owned()),
        }
        Ok(())
    }

    fn put(&mut self, i: u32) -> Result<(), String> {
        self.spend(2 * size_of::<(u32, Value)>() as u64)?;
        let top = *self.stack.last().ok_or_else(underflow)?;
        self.memo.insert(i, top);
        Ok(())
    }

    fn get(&mut self, i: u32) -> Result<(), String> {
        let value = self.memo.get(&i).copied();
        self.push(
            value.ok_or_else(|| format!("it takes value {i}, which it has not put anywhere"))?,
        )
    }

    fn length(&mut self, op: u8) -> Result<u64, String> {
        Ok(match op {
            b'U' | b'C' | 0x8c => self.bytes.byte()?.into(),
            0x8d | 0x8e | 0x96 => u64::from_le_bytes(self.bytes.array()?),
            _ => u32::from_le_bytes(self.bytes.array()?).into(),
        })
    }

    fn text(&mut self, op: u8) -> Result<(), String> {
        let len = self.length(op)?;
        if len > LONGEST {
            self.bytes.skip(len)?;
            return self.push_node(Node::LongText);
        }
        self.spend(len)?;
        let text = String::from_utf8_lossy(&self.bytes.take(len)?).into_owned();
        self.push_node(Node::Text(text.into()))
    }

    fn keep_text(&mut self, text: &str) -> Result<(), String> {
        self.spend(text.len() as u64)?;
        self.push_node(Node::Text(text.into()))
    }

    fn long(&mut self, op: u8) -> Result<(), String> {
        let len = match op {
            0x8a => self.bytes.byte()?.into(),
            _ => u32::from_le_bytes(self.bytes.array()?).into(),
        };
        if len > LONGEST {
            return Err(format!("it has an integer of {len} bytes"));
        }
        self.spend(len)?;
        let bytes = self.bytes.take(len)?;
        if bytes.len() > 8 {
            return self.push_node(Node::Long(bytes.into()));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut whole = [if negative { 0xff } else { 0 }; 8];
        whole[..bytes.len()].copy_from_slice(&bytes);
        self.push(Value::Int(i64::from_le_bytes(whole)))
    }

    fn number_in_a_line(&mut self, op: u8) -> Result<(), String> {
        let line = self.bytes.line(LONGEST_LINE)?;
        let line = String::from_utf8_lossy(&line);
        let text = line.trim().trim_end_matches('L');
        let value = match (op, text) {
            (b'I', "00") => Some(Value::Bool(false)),
            (b'I', "01") => Some(Value::Bool(true)),
            (b'F', _) => text.parse().ok().map(Value::Float),
            _ => text.parse().ok().map(Value::Int),
        };
        match value {
            Some(value) => self.push(value),
            // An integer of any length, in decimal.
            None if op == b'L' => self.push_node(Node::Long(Box::new([]))),
            None => Err("it has a number that is none".to_owned()),
        }
    }

    fn index_in_a_line(&mut self) -> Result<u32, String> {
        let line = self.bytes.line(LONGEST_LINE)?;
        let index = str::from_utf8(&line)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        index.ok_or_else(|| "it numbers a value with what is no number".to_owned())
    }

    fn name_in_a_line(&mut self) -> Result<String, String> {
        let line = self.bytes.line(LONGEST_LINE)?;
        Ok(String::from_utf8_lossy(&line).into_owned())
    }

    fn name_of(&self, value: Value) -> Result<String, String> {
        match value {
            Value::Node(i) => match self.nodes.get(i as usize) {
                Some(Node::Text(text)) => Ok(text.to_string()),
                _ => Err("it names a class by what is no text".to_owned()),
            },
            _ => Err("it names a class by what is no text".to_owned()),
        }
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), String> {
        self.spend((module.len() + name.len()) as u64)?;
        self.push_node(Node::Global(format!("{module}.{name}").into()))
    }
}

fn underflow() -> String {
    "it takes more values than it has given".to_owned()
}
