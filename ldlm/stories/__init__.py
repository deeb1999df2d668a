"""A source of text whose distribution is known: little English stories, written by a process that can be read back.

Real text has no known law, so a model of it is measured by another model. These stories have one. Each is three to
six sentences about people who have things, give them away, count them, hide them and lose them:

    On Friday, Clara found a red lantern at the station. She showed it to Ben. Ben borrowed the lantern for a day.
    He gave it back to Clara. Clara and Ben played with it at the station until dark.

**The process.** A story is a walk through a graph. A node is what is true (`grammar.State`): who has the lantern and
whose it is, how many shells each has, what is hidden where, who the last sentence was about. An edge is a sentence
that can be told then, with gaps for words: `{friend!} gave/gives {it} back to {hero?} .` can follow where the friend
has what is the hero's, and after it the hero has it. Whether the story ends is drawn first, then which sentence is
told, a number where it has one, name or pronoun where both would do; and where the story speaks of somebody or
something for the first time, a word: Anna, lantern, red, past or present. That word then stands to the end. So
agreement, tense, pronouns, owners, places and sums are right in every story, and are wrong in a text whose words were
not drawn together.

**One definition.** The sentences stand in `plots`, the words in `words`. `process.Source` makes the graph of them,
and everything else reads that graph: `write` draws a walk, `reading` finds the walk behind a text, `judging` says
where a text leaves the graph and what would have to be forgotten to go on, and entropies are sums over all walks.
There is no second grammar.

**Unambiguous.** No two walks write one text: full stops divide a text into sentences, and no two sentences that can
follow a state have a common spelling (a test compares all pairs). So the probability of a text is that of its walk, a
product, and

    H = E[−ln p(walk)] = H(START),    H(s) = Σ_e p(e) (−ln p(e) + Σ_new ln |options| + H(s'))

is exact: the words of a class are equally likely, and what can follow depends on which roles are filled, never by
whom.

**Rows.** Models read rows of packed stories, which begin and end anywhere. A cut beginning is read from all states at
once, and what the text says narrows them down; a cut end is judged as far as it goes. Only whole stories count as
stories.
"""
