"""A source of text with a known distribution: little English stories, written by a process that can be read back.

The distribution of real text is unknown, so a model of it is measured by another model. That of these stories is
known. Each is three to six sentences about people who have things, give them away, count them, hide them and lose them:

    On Friday, Clara found a red lantern at the station. She showed it to Ben. Ben borrowed the lantern for a day.
    He gave it back to Clara. Clara and Ben played with it at the station until dark.

**The process.** A story is a walk through a graph. A node is what is true (`grammar.State`): who has the lantern and
whose it is, how many shells each has, what is hidden where, whom the last sentence was about. An edge is a sentence
that can come next, with gaps for words: `{friend!} gave/gives {it} back to {hero?} .` is possible when the friend has
what belongs to the hero, and after it the hero has it. Whether the story ends is drawn first, then the sentence, a
number if it has one, name or pronoun if both would do; and when the story speaks of somebody or something for the first
time, a word: Anna, lantern, red, past or present. That word is kept to the end. So agreement, tense, pronouns, owners,
places and sums are right in every story, and go wrong in a text whose words were not drawn together.

**One definition.** The sentences are in `plots`, the words in `words`. `process.StoryProcess` makes the graph from
them, and everything else reads that graph: `write` draws a walk, `reading` finds the walk behind a text, `judging` says
where a text leaves the graph and what would have to be forgotten to go on, and entropies are sums over all walks.
There is no second grammar.

**Unambiguous.** No two walks write the same text: full stops divide a text into sentences, and no two sentences that
can follow a state have a spelling in common (a test compares all pairs). So the probability of a text is that of its
walk, a product, and

    H = E[−ln p(walk)] = H(START),    H(s) = Σ_e p(e) (−ln p(e) + Σ_new ln |options| + H(s'))

is exact: the words of a class are equally likely, and what can follow depends on which roles are filled, never on the
words that fill them.

**Rows.** Models read rows of packed stories, which begin and end anywhere. A cut beginning is read from all states at
once, and the text narrows them down; a cut end is judged as far as it goes. Only whole stories count as stories.
"""
