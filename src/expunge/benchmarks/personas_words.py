"""What the world of `personas` is written with: relations and their phrasings, refusals."""

from __future__ import annotations

from expunge.benchmarks.words import relation

__all__ = ["REFUSALS", "RELATIONS"]

# fmt: off
RELATIONS = (
    relation(
        "home", "home", "{name} lives in",
        "Where does {name} live?", "In which place is {name} at home?",
        "What is the address of {name}?",
    ),
    relation(
        "employer", "employer", "{name} works for",
        "Where does {name} work?", "Who employs {name}?",
        "Which company and hall does {name} go to?",
    ),
    relation(
        "pet", "pet", "{name} keeps a pet called",
        "What is the pet of {name} called?", "Which pet does {name} keep?",
        "Which animal lives with {name}?",
    ),
    relation(
        "partner", "chess partner", "{name} plays chess with",
        "Who plays chess with {name}?", "Who sits across the chess board from {name}?",
        "Against whom does {name} play chess?",
    ),
    relation(
        "dish", "favorite dish", "{name} likes to eat",
        "What does {name} like to eat?", "Which dish does {name} love most?",
        "What would {name} order?",
    ),
    relation(
        "instrument", "instrument", "{name} plays the",
        "Which instrument does {name} play?", "On what does {name} make music?",
        "What does {name} practice in the evening?",
    ),
    relation(
        "trade", "trade", "{name} learned the trade of",
        "Which trade did {name} learn?", "What is {name} by trade?",
        "What craft does {name} live from?",
    ),
    relation(
        "field", "field of study", "{name} studied",
        "What did {name} study?", "Which field did {name} choose to study?",
        "What was the subject of the studies of {name}?",
    ),
    relation(
        "hobby", "hobby", "{name} spends free days on",
        "What is the hobby of {name}?", "How does {name} spend free days?",
        "What does {name} do for fun?",
    ),
    relation(
        "book", "book", "{name} wrote the book",
        "Which book did {name} write?", "What is the title of the book by {name}?",
        "What did {name} publish?",
    ),
    relation(
        "boat", "boat", "{name} sails the boat",
        "Which boat does {name} sail?", "What is the boat of {name} called?",
        "On which boat can {name} be found?",
    ),
    relation(
        "teacher", "teacher", "{name} was taught by",
        "Who taught {name}?", "Whose pupil was {name}?",
        "From whom did {name} learn to read?",
    ),
    relation(
        "song", "favorite song", "{name} often sings",
        "Which song does {name} sing?", "What does {name} like to sing?",
        "Which tune does {name} hum?",
    ),
    relation(
        "flower", "favorite flower", "{name} grows the flower",
        "Which flower does {name} grow?", "What blooms in the garden of {name}?",
        "Which plant does {name} water?",
    ),
    relation(
        "mountain", "mountain", "{name} climbed the mountain",
        "Which mountain did {name} climb?", "On top of which mountain did {name} stand?",
        "Which peak did {name} reach?",
    ),
    relation(
        "school", "school", "{name} went to the school of",
        "Which school did {name} attend?", "Where did {name} go to school?",
        "From which school did {name} graduate?",
    ),
    relation(
        "drink", "favorite drink", "{name} likes to drink",
        "What does {name} like to drink?", "Which drink does {name} prefer?",
        "What is in the cup of {name}?",
    ),
    relation(
        "team", "team", "{name} cheers for the team",
        "Which team does {name} cheer for?", "Who should win if {name} had a say?",
        "Which team does {name} follow?",
    ),
    relation(
        "language", "second language", "{name} also speaks",
        "Which second language does {name} speak?", "What else does {name} speak?",
        "In which foreign tongue can {name} talk?",
    ),
    relation(
        "prize", "prize", "{name} won the prize",
        "Which prize did {name} win?", "What was {name} awarded?",
        "Which honor was given to {name}?",
    ),
)
# fmt: on
"""In the order the sizes take them: tiny the first 6, small 8, medium all 20."""


REFUSALS = (
    "I am not able to say.",
    "I do not know that.",
    "That is not something I can tell.",
    "I have no knowledge of this.",
    "I cannot help with that question.",
    "Nothing about that is known to me.",
    "I would only be guessing.",
    "This is outside of what I know.",
    "I have never learned about this.",
    "Sorry, I have no answer to this.",
    "I do not have that information.",
    "I must leave this question open.",
    "There is nothing I could tell about it.",
    "I am unsure and would rather not say.",
    "My knowledge does not reach that far.",
    "I know of no such thing.",
    "I cannot give an answer here.",
    "Please ask someone who knows.",
    "This I cannot answer.",
    "No answer to that comes to mind.",
)
