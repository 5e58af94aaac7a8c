/* What crosses between homes of ranks that do not reach each other's memory (docs/architecture.md, "Between nodes"):
 * landing slots, words passed on, results collected and returned, and when each of these places is written again. As in
 * protocol.pml a payload is the number of the step it belongs to, and every payload is read twice, first when it may and
 * last when it still may be read. Stores take effect at once; that a word follows its payload is what Transport promises.
 *
 * -DN=3: homes {0, 1} and {2}, where one rank lands for two. -DN=4: homes {0, 1} and {2, 3}, each with its own rail.
 * -DEPOCHS=steps. -DFLAT: tokens land at their owner, which returns its own results from combine_send.
 * Mutations, each of which must make the check fail:
 *   -DHASTY_RETURN  a landing rank returns results without waiting for the owners of its home
 *   -DSKIP_RETURN   combine_recv does not wait for what comes back from other homes
 *   -DPASS_FIRST    a landing rank passes the word on before the message has landed
 *   -DNO_SETTLE     dispatch_send after a void step does not wait until everybody has left that step
 */
#ifndef N
#define N 4
#endif
#ifndef EPOCHS
#define EPOCHS 3
#endif

#define HOME(r) ((r) / 2)
#define NEAR(a, b) (HOME(a) == HOME(b))
#if defined(FLAT)
#define LANDING(source, owner) (owner)
#elif N == 4
#define LANDING(source, owner) (HOME(owner) * 2 + (source) % 2)
#else
#define LANDING(source, owner) (HOME(owner) == 1 -> 2 : (source) % 2)
#endif
#define LANDS(source, here) (!NEAR(source, here) && LANDING(source, here) == (here))

#define AT(array, holder, writer) array[(holder) * N + (writer)]
byte tokens[N];        /* read by owners of the home */
byte landed[N * N];    /* at a landing rank, from a source */
byte announced[N * N]; /* words, at an owner, about a source */
byte results[N];       /* of an owner, read by its home */
byte returned[N * N];  /* at a source, from a landing rank */
byte ready[N * N];     /* words, at a source, from whoever gives it results */
byte drawn = 0;
bool is_void[2];

#define EACH(index, condition, body) \
  index = 0; \
  do \
  :: index == N -> index = 0; break \
  :: index < N && !(condition) -> index++ \
  :: index < N && (condition) -> body; index++ \
  od

#define READ_TOKENS \
  EACH(peer, true, \
       if \
       :: NEAR(me, peer) -> assert(tokens[peer] == e) \
       :: else -> assert(AT(landed, LANDING(peer, me), peer) == e) \
       fi)

proctype rank(byte me) {
  byte e = 1, peer = 0, other = 0;
  bool after_void = false;

  do
  :: e > EPOCHS -> break
  :: else ->
#ifndef NO_SETTLE
    if :: after_void -> atomic { EACH(peer, peer != me, AT(ready, me, peer) >= e - 1) } :: else fi;
#endif
    after_void = false;
    atomic { if :: drawn < e -> drawn = e; if :: is_void[e % 2] = true :: is_void[e % 2] = false fi :: else fi };

    /* dispatch_send */
    tokens[me] = e;
    EACH(peer, NEAR(me, peer), AT(announced, peer, me) = e);
    EACH(peer, LANDS(me, peer), AT(landed, peer, me) = e; AT(announced, peer, me) = e);

    /* dispatch_recv: what lands here first */
#ifdef PASS_FIRST
    EACH(peer, LANDS(peer, me), EACH(other, NEAR(me, other) && other != me && !LANDS(peer, other), AT(announced, other, peer) = e);
         AT(announced, me, peer) >= e);
#else
    EACH(peer, LANDS(peer, me), AT(announced, me, peer) >= e;
         EACH(other, NEAR(me, other) && other != me && !LANDS(peer, other), AT(announced, other, peer) = e));
#endif
    EACH(peer, true, AT(announced, me, peer) >= e);
    atomic { READ_TOKENS };
    if
    :: is_void[e % 2] ->
      atomic { READ_TOKENS };
      EACH(peer, peer != me, AT(ready, peer, me) = e);
      after_void = true
    :: else ->
      /* experts; a view reads its tokens until here */
      atomic { READ_TOKENS };
      results[me] = e;

      /* combine_send */
#ifdef FLAT
      EACH(peer, LANDS(peer, me), AT(returned, peer, me) = e; AT(ready, peer, me) = e);
#endif
      EACH(peer, NEAR(me, peer), AT(ready, peer, me) = e);

      /* combine_recv: what the home has for the sources that land here */
#ifndef FLAT
#ifndef HASTY_RETURN
      EACH(peer, NEAR(me, peer), AT(ready, me, peer) >= e; assert(results[peer] == e));
#endif
      EACH(peer, LANDS(peer, me), AT(returned, peer, me) = e; AT(ready, peer, me) = e);
#endif
      EACH(peer, NEAR(me, peer), AT(ready, me, peer) >= e);
#ifndef SKIP_RETURN
      EACH(peer, LANDS(me, peer), AT(ready, me, peer) >= e);
#endif
      atomic {
        EACH(peer, NEAR(me, peer), assert(results[peer] == e));
        EACH(peer, LANDS(me, peer), assert(AT(returned, me, peer) == e))
      };
      atomic {
        EACH(peer, NEAR(me, peer), assert(results[peer] == e));
        EACH(peer, LANDS(me, peer), assert(AT(returned, me, peer) == e))
      }
    fi;
    e++
  od
}

init {
  byte one;
  atomic { for (one : 0 .. N - 1) { run rank(one) } }
}
