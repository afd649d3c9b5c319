//! The Common Expression Language as Kubernetes uses it: validation rules of custom resources,
//! admission policies, match conditions. Pure; every evaluation has a cost budget.
//!
//! Our own because no crate counts costs, reads JSON in place by a schema and evaluates what
//! Kubernetes 1.36 allows (two-variable comprehensions, optionals, typed struct literals) without
//! ever panicking on a user's text.

mod check;
mod eval;
mod functions;
mod lex;
mod library;
pub mod limits;
mod parse;
mod time;
mod value;

use std::{cell::Cell, fmt};

pub use check::{Estimate, check};
pub use parse::is_identifier;

/// Whether the text is a duration as Go writes them.
pub fn is_duration(text: &str) -> bool {
    time::duration(text).is_some()
}

pub use value::{Foreign, Key, List, Map, Text, Val};

/// A parsed expression.
#[derive(Clone, Debug)]
pub struct Program {
    source: String,
    root: parse::Expr,
}

/// Why a text is no expression: upstream's form with line, column and the place marked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(String);

impl ParseError {
    fn new(source: &str, at: usize, what: String) -> Self {
        let before = source.get(..at).unwrap_or(source);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |n| n + 1);
        let column = before[start..].chars().count();
        let text = source[start..].lines().next().unwrap_or_default();
        Self(format!("ERROR: <input>:{line}:{}: {what}\n | {text}\n | {}^", column + 1, ".".repeat(column)))
    }
}

/// Why an evaluation has no result.
#[derive(Clone, Debug, PartialEq)]
pub enum EvalError {
    /// `no such key: x`, `division by zero`, …
    Failed(String),
    /// The budget is used up.
    TooExpensive,
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(why) => f.write_str(why),
            Self::TooExpensive => f.write_str("operation cancelled: actual cost limit exceeded"),
        }
    }
}

impl Program {
    /// # Errors
    /// Where the text is no expression.
    pub fn parse(source: &str) -> Result<Self, ParseError> {
        Ok(Self { source: source.to_owned(), root: parse::parse(source)? })
    }

    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the expression reads this variable.
    pub fn mentions(&self, variable: &str) -> bool {
        check::mentions(&self.root, variable)
    }

    /// Evaluates with these variables, taking what it costs out of the budget.
    ///
    /// # Errors
    /// When the expression fails or the budget, or that of one call, is used up.
    pub fn eval<'a>(&self, variables: &[(&str, Val<'a>)], budget: &Budget) -> Result<Val<'a>, EvalError> {
        let call = Budget::new(budget.left().min(limits::CALL_COST));
        let result = eval::run(&self.root, variables, &call);
        budget.spend(call.spent());
        result
    }
}

/// What evaluations may still cost.
#[derive(Debug)]
pub struct Budget {
    left: Cell<u64>,
    whole: u64,
}

impl Budget {
    pub fn new(whole: u64) -> Self {
        Self { left: Cell::new(whole), whole }
    }

    pub fn left(&self) -> u64 {
        self.left.get()
    }

    fn spent(&self) -> u64 {
        self.whole - self.left.get()
    }

    fn spend(&self, cost: u64) {
        self.left.set(self.left.get().saturating_sub(cost));
    }

    fn charge(&self, cost: u64) -> Result<(), EvalError> {
        let left = self.left.get();
        self.spend(cost);
        if cost > left { Err(EvalError::TooExpensive) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
