/* A VMBus guest good enough to be let in, with every chance to lie once it is. */
#pragma once
#include "machine.h"

/* Hypercall page, SynIC pages, interrupt source; undone by some attacks, so done again and again. */
void set_up_synic(void);
/* Takes the host's messages and answers them as a driver would, mostly. */
void take_messages(void);
void connect(void);
/* A message of any type with contents of any kind. */
void send_nonsense(void);
void call_nonsense(void);
/* Frames of the agent, well-formed or not, into a channel's ring. */
void talk(void);
/* Random words where the host reads. */
void scribble(void);
