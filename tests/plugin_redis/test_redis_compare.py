"""Byte for byte what a real redis-server answers: both examples, through the protocol."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import pytest
from kv_server import Wire, example, packed

# One command a line; `~` is the empty string. Replies whose order Redis does not define are
# left out, and so are numbers that depend on the clock.
SCRIPTS = {
    "strings": """
        SET k v | GET k | get k | GET missing | SET k v NX | SET new v NX | SET k w XX
        SET none v XX | EXISTS none | SET k x GET | SET none2 x GET | SET k y NX GET | GET k
        SET k v EX 0 | SET k v EX -1 | SET k v PX x | SET k v EX | SET k v EX 10 PX 10
        SET k v EX 10 EX 20 | TTL k | SET k v NX NX | SET k v PX 10 PX 20000 KEEPTTL
        SET k v NX XX | SET k v KEEPTTL EX 10 | SET k v bogus | SET k | SET
        SET k v EX 100 | TTL k | SET k w KEEPTTL | TTL k | SET k w | TTL k
        SET k v PX 100000 | TTL k | SET k v EXAT 1 | GET k | SET k v PXAT 99999999999999
        SET k v EX 9223372036854775807 | SET k v EX 9999999999999999
        SETNX k w | SETNX k2 w | SETEX k 100 v | TTL k | SETEX k 0 v | SETEX k x v
        PSETEX k 100000 v | TTL k | PSETEX k -5 v | GETSET k z | GETSET fresh z | TTL k
        GETDEL fresh | GETDEL fresh | GETEX k | GETEX k EX 100 | TTL k | GETEX k PERSIST
        TTL k | GETEX k EX | GETEX k EX 0 | GETEX k FOO | GETEX missing EX 5 | GETEX k EX 5 EX 50
        TTL k | GETEX k EX 1 PERSIST | GETEX k PERSIST PERSIST | TTL k | GETEX k PX x
        GETEX k EXAT 1
        EXISTS k | APPEND a 12 | APPEND a 345 | STRLEN a | STRLEN missing | APPEND a ~
        GETRANGE a 0 1 | GETRANGE a -3 -1 | GETRANGE a 3 1 | GETRANGE a -1 -3 | GETRANGE a 0 -100
        GETRANGE a -100 100 | GETRANGE a 5 9 | GETRANGE a x 1 | GETRANGE missing 0 -1
        GETRANGE a 0 -1 | GETRANGE a -100 -100 | GETRANGE a 1 -100 | SUBSTR a 1 2
        SETRANGE a 2 xyz | GET a | SETRANGE a 8 q | GET a | SETRANGE a -1 q | SETRANGE n1 0 ~
        EXISTS n1 | SETRANGE a 536870912 q | SETRANGE a x q | SETRANGE n2 3 ~ | SETRANGE n2 3 q
        MSET a 1 b 2 | MGET a b c | MSET a 1 b | MSET a | MSETNX a 1 z 2 | MSETNX y 1 z 2
        MGET y z | MSETNX a | MSETNX a 1 b | MGET
    """,
    "counters": """
        INCR n | INCR n | DECR n | INCRBY n 10 | DECRBY n 3 | INCRBY n -5 | GET n | INCR n x
        SET n abc | INCR n | SET n 1.5 | INCR n | INCRBY n | SET n 9223372036854775807 | INCR n
        SET n -9223372036854775808 | DECR n | DECRBY n 1 | DECRBY m -9223372036854775808
        INCRBY m 9223372036854775808 | INCRBY m x | INCRBY m +1 | INCRBY m 01 | INCRBY m ~
        SET n 01 | INCR n | SET n ~ | INCR n | INCRBYFLOAT f 10.5 | INCRBYFLOAT f 0.1
        INCRBYFLOAT f -5 | INCRBYFLOAT f 5.0e0 | INCRBYFLOAT f x | SET f abc | INCRBYFLOAT f 1
        SET f 3 | INCRBYFLOAT f 1 | INCRBYFLOAT f -4 | INCRBYFLOAT f inf | INCRBYFLOAT f nan
        INCRBYFLOAT g 0.1 | INCRBYFLOAT g 0.2 | RPUSH l a | INCR l
        INCRBYFLOAT l 1 | INCRBY l x | DECR l | SET e ~ | INCRBYFLOAT e 1 | INCRBYFLOAT e ~
        INCRBYFLOAT g 1e5000 | INCRBYFLOAT g 1e-400 | INCRBYFLOAT g 0x10 | INCRBYFLOAT g 1_0
    """,
    "expiry": """
        SET k v | TTL k | PTTL k | TTL missing | PTTL missing | EXPIRE k 100 | TTL k
        EXPIRE missing 100 | EXPIRE k x | EXPIRE k | PERSIST k | PERSIST k | PERSIST missing
        TTL k | PEXPIRE k 100000 | TTL k | EXPIRE k 100 NX | EXPIRE k 200 XX | TTL k
        EXPIRE k 100 GT | EXPIRE k 300 GT | TTL k | EXPIRE k 400 LT | EXPIRE k 200 LT | TTL k
        EXPIRE k 100 NX XX | EXPIRE k 100 GT LT | EXPIRE k 100 NX GT | EXPIRE k 100 FOO
        EXPIRE k 100 fOo | PERSIST k | EXPIRE k 100 GT | EXPIRE k 100 XX | EXPIRE k 100 LT
        TTL k | EXPIREAT k 99999999999 | EXPIRETIME k | PEXPIRETIME k | PEXPIREAT k 9999999999999
        EXPIRETIME k | PEXPIRETIME missing | EXPIRE k 9223372036854775807
        EXPIRE k 9223372036854775 | EXPIRE k -9223372036854775807 | PEXPIRE k 9223372036854775807
        EXPIRE k -1 | EXISTS k | SET k v | EXPIREAT k 1 | GET k | SET k v | PEXPIRE k 0 | GET k
        SET k v EX 100 | APPEND k w | TTL k | INCR n | EXPIRE n 100 | INCR n | TTL n
        SET k new | TTL k | RPUSH l a | EXPIRE l 100 | RPUSH l b | TTL l | LPOP l 2 | RPUSH l c
        TTL l
    """,
    "keys": """
        MSET a 1 b 2 c 3 | DEL a x b | DEL | UNLINK c | EXISTS c | SET k v | EXISTS k k x
        TOUCH k x | TYPE k | TYPE x | RPUSH l a | TYPE l | HSET h f v | TYPE h | SADD s m
        TYPE s | ZADD z 1 m | TYPE z | ZADD z 1e400 m | ZADD z -1e400 n | ZADD z 1e-400 m
        ZADD z 2 n 1e400 o | ZCARD z | ZSCORE z m | ZINCRBY z 1e400 m
        RENAME x y | RENAME k k | RENAME k k3 | GET k3
        EXPIRE k3 100 | RENAME k3 k4 | TTL k4 | RENAMENX k4 l | RENAMENX k4 k5 | RENAMENX x y
        RENAMENX k5 k5 | RENAME k5 | DBSIZE | KEYS k? | KEYS h | KEYS [yz] | KEYS [^lhsk]
        KEYS \\\\z | KEYS nothing* | KEYS | SELECT 1 | DBSIZE | RANDOMKEY | SET only 1 | RANDOMKEY
        SELECT 0 | FLUSHDB | DBSIZE | SELECT 1 | DBSIZE | FLUSHALL | DBSIZE | FLUSHALL ASYNC
        FLUSHALL foo | FLUSHDB SYNC | FLUSHDB foo bar | SCAN 0 | SCAN x | SCAN 0 COUNT 0
        SCAN 0 COUNT x | SCAN 0 FOO 1 | SCAN 0 MATCH | SCAN 0 COUNT | SCAN -1 | SET a 1 | SCAN 0
        SCAN 0 MATCH b* | SCAN 0 TYPE string | SCAN 0 TYPE list | SSCAN x 0 | HSCAN x 0
        ZSCAN x 0 | SSCAN a 0 | SADD s m | SSCAN s 0 | SSCAN s 0 MATCH n | HSET h f v | HSCAN h 0
        ZADD z 1 m | ZSCAN z 0 | HSCAN h y | SSCAN s 0 TYPE set | OBJECT ENCODING a
        SET a text | OBJECT ENCODING a | OBJECT ENCODING x | OBJECT ENCODING h
        OBJECT ENCODING z | SELECT 16 | SELECT x | SELECT 0
    """,
    "hashes": """
        HSET h a 1 b 2 | HSET h a 3 c 4 | HSET h a | HSET h a 1 b | HSET h | HGET h a | HGET h x
        HGET x a | HMGET h a x b | HMGET x a | HLEN h | HLEN x | HEXISTS h a | HEXISTS h x
        HSTRLEN h a | HSTRLEN h x | HSETNX h a 9 | HSETNX h d 9 | HMSET h a 1 e 2 | HMSET h a
        HMSET h a 1 e | HKEYS h | HVALS h | HGETALL h | HGETALL x | HKEYS x | HVALS x
        HRANDFIELD x | HRANDFIELD x 3 | HRANDFIELD x 3 WITHVALUES
        HRANDFIELD x -9223372036854775808 | HSET one f v | HRANDFIELD one | HRANDFIELD one 1
        EVAL return(redis.call('hrandfield','one')) 0
        HDEL h a x | HDEL h b c d | HGETALL h | HDEL h e | EXISTS h | HINCRBY h n 5
        HINCRBY h n -7 | HINCRBY h n x | HSET h t abc | HINCRBY h t 1
        HSET h big 9223372036854775807 | HINCRBY h big 1 | HINCRBYFLOAT h f 10.5
        HINCRBYFLOAT h f 0.1 | HSET h e ~ | HINCRBYFLOAT h e 1
        HINCRBYFLOAT h t 1 | HINCRBYFLOAT h f x | HINCRBYFLOAT h f inf
        SET s v | HSET s a 1 | HGET s a | HGETALL s | HDEL s a | HLEN s | HINCRBY s a 1
        HINCRBYFLOAT s a 1 | HMGET s a | HSCAN s 0 | HKEYS s | HSETNX s a 1 | HEXISTS s a
    """,
    "lists": """
        RPUSH l a b c | LPUSH l z y | LRANGE l 0 -1 | LRANGE l 1 2 | LRANGE l -2 -1
        LRANGE l 5 9 | LRANGE l 3 1 | LRANGE l -100 100 | LRANGE x 0 -1 | LRANGE l x 1 | LLEN l
        LLEN x | LINDEX l 0 | LINDEX l -1 | LINDEX l 99 | LINDEX l -99 | LINDEX x 0 | LINDEX l x
        LSET l 0 q | LSET l -1 r | LSET l 99 r | LSET x 0 r | LSET l x r | LRANGE l 0 -1
        LPUSHX x a | RPUSHX x a | LPUSHX l a | RPUSHX l a | LREM l 1 a | LREM l -1 a | LREM l 0 zz
        LREM x 0 a | LREM l x a | RPUSH d a b a c a | LREM d 2 a | LRANGE d 0 -1 | RPUSH d a
        LREM d -1 a | LRANGE d 0 -1 | LREM d 0 a | LRANGE d 0 -1 | LREM d 0 b | LREM d 0 c
        EXISTS d | LINSERT l BEFORE b new | LINSERT l after b new2 | LINSERT l BEFORE zz n
        LINSERT x BEFORE b n | LINSERT l MIDDLE b n | LRANGE l 0 -1 | LTRIM l 1 -2
        LRANGE l 0 -1 | LTRIM x 0 1 | LTRIM l x 1 | LTRIM l 5 1 | EXISTS l | LPOP l | RPOP l
        LPOP l 2 | RPUSH l a b c d e | LPOP l | RPOP l | LPOP l 2 | LPOP l 0 | LPOP l -1
        LPOP l x | LPOP l 1 2 | RPOP l 9 | EXISTS l | RPUSH l a b | RPOPLPUSH l m
        RPOPLPUSH l m | RPOPLPUSH l m | RPOPLPUSH m m | LRANGE m 0 -1 | LMOVE m n LEFT RIGHT
        LMOVE m n RIGHT left | LMOVE m n LEFT RIGHT | LMOVE m n UP DOWN | LRANGE n 0 -1
        LMOVE n n LEFT RIGHT | RPUSH one 1 | RPOPLPUSH one one | LRANGE one 0 -1 | SET s v
        LPUSH s a | LPOP s | LRANGE s 0 -1 | LLEN s | RPOPLPUSH n s | RPOPLPUSH s n | LINDEX s 0
        LSET s 0 a | LREM s 0 a | LTRIM s 0 1 | LINSERT s BEFORE a b | LPUSHX s a | LPUSH
        LPUSH l
    """,
    "blocking pops": """
        RPUSH l a b c d | BLPOP l 0 | BRPOP l 0 | BLPOP x l 1 | BLPOP l x | BLPOP l -1
        BLPOP l | BLMOVE l m LEFT RIGHT 0 | BLMOVE l m UP LEFT 0 | BLMOVE l m LEFT LEFT x
        RPUSH l a | BRPOPLPUSH l m 0 | BRPOPLPUSH l m -1 | LRANGE m 0 -1 | BLPOP nil 0.01
        BRPOP nil nil2 0.01 | BLMOVE nil m LEFT LEFT 0.01 | BRPOPLPUSH nil m 0.01 | SET s v
        BLPOP s 0 | BRPOPLPUSH s m 0 | RPUSH l a | BRPOPLPUSH l s 0 | MULTI | BLPOP nil 0
        BLMOVE nil m LEFT LEFT 0 | BRPOPLPUSH nil m 0 | RPUSH nil a | BLPOP nil 0 | EXEC
    """,
    "sets": """
        SADD s a b c a | SADD s a | SCARD s | SCARD x | SISMEMBER s a | SISMEMBER s x
        SISMEMBER x a | SMISMEMBER s a x b | SMISMEMBER x a b | SREM s a x | SREM x a
        SREM s b c | EXISTS s | SADD s one | SMEMBERS s | SMEMBERS x | SPOP s | SPOP s
        SPOP s 2 | SADD s one | SPOP s 5 | SPOP s -1 | SPOP s x | SPOP s 1 2 | SADD s one
        SRANDMEMBER s | SRANDMEMBER x | SRANDMEMBER s 5 | SRANDMEMBER s -3 | SRANDMEMBER x 2
        SRANDMEMBER s x | SRANDMEMBER s 1 2 | SRANDMEMBER s 0
        SRANDMEMBER s -9223372036854775808 | SPOP s 0 | SADD t one two
        SINTER s t | SDIFF t s | SINTER s x | SDIFF x s | SUNION s x | SINTERSTORE d s t
        SMEMBERS d | SUNIONSTORE d s t | SCARD d | SDIFFSTORE d t s | SMEMBERS d
        SDIFFSTORE d s t | EXISTS d | SMOVE t s two | SMOVE t s zz | SMOVE x s a | SCARD s
        SMOVE t t one | SET str v | SADD str a | SMEMBERS str | SINTER s str | SINTER x str
        SUNIONSTORE d s str | SMOVE t str one | SMOVE str t one | SPOP str | SCARD str
        SINTERSTORE str s s | TYPE str | SINTER | SADD s
    """,
    "sorted sets": """
        ZADD z 1 a 2 b 3 c | ZADD z 1 a | ZADD z 5 a 6 d | ZADD z CH 7 a 8 e | ZADD z NX 9 a 1 f
        ZADD z XX 9 a 1 g | ZADD z GT 1 a | ZADD z GT CH 10 a | ZADD z LT CH 4 a | ZADD z INCR 2 a
        ZADD z NX INCR 2 a | ZADD z XX INCR 2 zz | ZADD z GT INCR -1 a | ZADD z INCR 1 a 2 b
        ZADD z NX XX 1 a | ZADD z GT LT 1 a | ZADD z NX GT 1 a | ZADD z 1 | ZADD z x a
        ZADD z 1 a 2 | ZADD z NX | ZADD z nan a | ZADD z inf i | ZADD z -inf j | ZADD z INCR -inf i
        ZSCORE z i | ZSCORE z a | ZSCORE z zz | ZSCORE x a | ZMSCORE z a zz j | ZMSCORE x a
        ZCARD z | ZCARD x | ZRANGE z 0 -1 | ZRANGE z 0 -1 WITHSCORES | ZRANGE z 1 2 REV
        ZRANGE z -2 -1 | ZRANGE z 5 1 | ZRANGE z 0 -1 LIMIT 0 1 | ZRANGE z x 1 | ZRANGE z 0 1 FOO
        ZRANGE x 0 -1 | ZRANGE z 2 6 BYSCORE | ZRANGE z (2 (6 BYSCORE | ZRANGE z 6 2 BYSCORE REV
        ZRANGE z -inf +inf BYSCORE LIMIT 1 2 | ZRANGE z -inf +inf BYSCORE LIMIT 1 -1 WITHSCORES
        ZRANGE z -inf +inf BYSCORE LIMIT -1 2 | ZRANGE z +inf -inf BYSCORE REV LIMIT 1 2
        ZRANGE z a b BYSCORE | ZRANGE z 0 1 BYSCORE LIMIT 0 | ZRANGE z 0 1 BYSCORE LIMIT x 1
        ZRANGEBYSCORE z 2 6 | ZRANGEBYSCORE z (2 6 WITHSCORES | ZRANGEBYSCORE z 6 2
        ZRANGEBYSCORE z -inf inf LIMIT 2 1 | ZRANGEBYSCORE z x 1 | ZRANGEBYSCORE z 1 2 FOO
        ZREVRANGE z 0 1 | ZREVRANGE z 0 1 WITHSCORES | ZREVRANGE z 0 1 FOO | ZREVRANGE z 5 100
        ZREVRANGEBYSCORE z 6 2 | ZREVRANGEBYSCORE z +inf (3 WITHSCORES LIMIT 0 2
        ZCOUNT z 2 6 | ZCOUNT z -inf +inf | ZCOUNT z (2 (6 | ZCOUNT z x 1 | ZCOUNT x 0 1
        ZCOUNT z 6 2 | ZRANK z a | ZRANK z zz | ZRANK x a | ZREVRANK z a | ZREVRANK z zz
        ZINCRBY z 1.5 a | ZINCRBY z x a | ZINCRBY new 2 m | ZINCRBY z inf j | ZREM z a zz
        ZREM x a | ZPOPMIN z | ZPOPMAX z | ZPOPMIN z 2 | ZPOPMAX z 0 | ZPOPMIN x | ZPOPMIN x 2
        ZPOPMIN z -1 | ZPOPMIN z x | ZPOPMIN z 1 2 | DEL z | ZADD z 1 a 2 b 3 c 4 d 5 e
        ZREMRANGEBYRANK z 0 0 | ZREMRANGEBYRANK z -1 -1 | ZREMRANGEBYRANK z 5 9
        ZREMRANGEBYSCORE z (2 3 | ZREMRANGEBYSCORE z 9 8 | ZREMRANGEBYSCORE z x 1
        ZREMRANGEBYRANK z x 1 | ZRANGE z 0 -1 | ZREMRANGEBYRANK z 0 -1 | EXISTS z
        ZRANDMEMBER z -9223372036854775808 | ZRANDMEMBER z | ZRANDMEMBER z 3
        ZADD one 1 m | ZRANDMEMBER one | ZRANDMEMBER one 1 | ZRANDMEMBER one 1 WITHSCORES
        ZADD z 1 r | ZRANDMEMBER z -9223372036854775808 | ZREM z r
        ZADD same 1 c 1 a 1 b | ZRANGE same 0 -1 | ZREVRANGE same 0 -1
        ZADD z 1.5 a 0.25 b
        ZRANGE z 0 -1 WITHSCORES | ZADD z 1e3 k | ZSCORE z k | ZADD z XX 1 no | ZADD z2 XX 1 no
        EXISTS z2 | SET s v | ZADD s 1 a | ZSCORE s a | ZRANGE s 0 -1 | ZPOPMIN s | ZINCRBY s 1 a
        ZREM s a | ZRANGEBYSCORE s 0 1 | ZCARD s | ZADD z | ZRANGE z 0
    """,
    "counted keys": """
        ZADD z 1 a 2 b 3 c | SADD s a b c | SINTERCARD 1 x | SINTERCARD 1 x LIMIT 0
        SINTERCARD 0 x | SINTERCARD x x | SINTERCARD 1 x LIMIT -1 | SINTERCARD 1 x LIMIT x
        SINTERCARD 2 x | SINTERCARD 1 x y | SINTERCARD 1 x LIMIT 1 1 | SINTERCARD 1 z
        SINTERCARD 1 s | SINTERCARD 1 s LIMIT 2 | SINTERCARD 1 s LIMIT 2 LIMIT 1
        SINTERCARD 2 s x | SINTERCARD 2 x z | ZINTERCARD 1 x LIMIT 0 | ZINTERCARD 0 x
        ZINTERCARD x x | ZINTERCARD 1 x LIMIT -1 | ZINTERCARD 1 x LIMIT x | ZINTERCARD 2 x
        ZINTERCARD 1 x y | ZINTERCARD 1 z LIMIT 1 | ZINTERCARD 1 s
        LMPOP 0 x LEFT | LMPOP x x LEFT | LMPOP -1 x LEFT | LMPOP 1 x | LMPOP 1 x FOO
        LMPOP 2 x LEFT | LMPOP 1 x LEFT COUNT 0 | LMPOP 1 x LEFT COUNT x | LMPOP 1 x LEFT COUNT
        LMPOP 1 x LEFT FOO 1 | LMPOP 1 x LEFT COUNT 1 COUNT 2 | LMPOP 1 s LEFT
        BLMPOP 0 0 x LEFT | BLMPOP 0 x x LEFT | BLMPOP 0 1 x | BLMPOP 0 1 x FOO
        BLMPOP x 1 x LEFT | BLMPOP 0 1 x LEFT COUNT 0 | BLMPOP 0 1 x LEFT COUNT x
        BLMPOP 0.01 1 x LEFT COUNT 1 | ZMPOP 0 x MIN | ZMPOP x x MIN | ZMPOP 1 x | ZMPOP 1 x FOO
        ZMPOP 1 x MIN COUNT 0 | ZMPOP 1 x MIN COUNT x | ZMPOP 1 x MIN COUNT 1 COUNT 2
        ZMPOP 1 s MIN | BZMPOP 0 0 x MIN | BZMPOP 0 x x MIN | BZMPOP 0 1 x FOO
        BZMPOP 0 1 x MIN COUNT 0 | ZUNION 0 x | ZINTER 0 x | ZDIFF 0 x | ZUNIONSTORE d 0 x
        ZINTERSTORE d 0 x | ZDIFFSTORE d 0 x | ZUNION x x | ZUNION -1 x | ZUNION 3 x y
        ZRANGESTORE d z 0 -1 LIMIT 1 2 | ZRANGESTORE d z 0 -1 WITHSCORES | ZRANGESTORE d z x 1
        ZRANGESTORE d z [a [c BYLEX LIMIT 0 1 | ZRANGE z 0 -1 BYLEX WITHSCORES
        ZRANGE z [a [b BYLEX WITHSCORES | ZREVRANGE z 0 -1 BYSCORE | ZRANGEBYSCORE z 0 -1 REV
        COMMAND GETKEYS ZUNIONSTORE d 2 a b | COMMAND GETKEYS ZDIFFSTORE d 1 a
        COMMAND GETKEYS EVAL x 0 | COMMAND GETKEYS EVAL x 1 k | COMMAND GETKEYS FCALL_RO f 0
    """,
    "consumer groups": """
        XGROUP CREATE m g $ MKSTREAM | XADD m 666 k v | XDEL m 666
        XREADGROUP GROUP g c BLOCK 0 STREAMS m 0 | XREADGROUP GROUP g c BLOCK 0 STREAMS m 700
        XADD m 667 k v | XREADGROUP GROUP g c BLOCK 0 STREAMS m 0
        XREADGROUP GROUP g c BLOCK 10 STREAMS m > | XREADGROUP GROUP g c BLOCK 10 STREAMS m >
        XREADGROUP GROUP g c BLOCK x STREAMS m > | XREADGROUP GROUP g c BLOCK -1 STREAMS m >
        XREADGROUP GROUP g c BLOCK STREAMS m > | XREADGROUP GROUP g c BLOCK 1 COUNT 1 STREAMS m >
        XREADGROUP GROUP g c NOACK BLOCK 1 STREAMS m > | XREADGROUP GROUP no c STREAMS m >
        XREADGROUP GROUP g c BLOCK 0 STREAMS m 600 | XREADGROUP GROUP no c BLOCK 1 STREAMS m >
        XREADGROUP GROUP g c BLOCK 1 STREAMS x > | XREADGROUP GROUP g c BLOCK 1 STREAMS m x > >
        XREADGROUP GROUP block c BLOCK 1 STREAMS m > | XREADGROUP GROUP g c STREAMS x >
        MULTI | XREADGROUP GROUP g c BLOCK 0 STREAMS m > | EXEC
        WATCH m | XGROUP DESTROY m no | MULTI | PING | EXEC
        WATCH m | XGROUP DESTROY m g | MULTI | PING | EXEC
        COMMAND GETKEYS SORT abc STORE def | COMMAND GETKEYS SORT k | COMMAND GETKEYS SORT k STORE
        COMMAND GETKEYS SORT abc STORE no STORE still STORE def
        COMMAND GETKEYS SORT k BY store LIMIT 1 store GET store STORE x
    """,
    "wrong types": """
        RPUSH l a | HSET h f v | SADD s m | GET l | GET h | SET l v GET | GETSET l v | GETDEL l
        GETEX l | APPEND l v | STRLEN l | GETRANGE l 0 1 | SETRANGE l 0 v | MGET l h | INCR h
        SETNX l v | HGET l f | SADD l m | ZADD l 1 m | LPUSH h v | LPUSH s v | SINTER s l
        BZPOPMIN l 1 | BZPOPMAX h 1 | BZPOPMIN x l 1 | XREAD STREAMS l 0
        XREADGROUP GROUP g c STREAMS l > | SET l v NX | SET l v | GET l | GETRANGE h x y
        LRANGE h 0 -1 | LINDEX h 0
    """,
    "transactions": """
        MULTI | SET k 1 | INCR k | GET k | EXEC | EXEC | DISCARD | MULTI | MULTI | DISCARD
        MULTI | INCR | SET k 2 | EXEC | MULTI | NOSUCH | EXEC | MULTI | SET k abc | INCR k
        GET k | EXEC | WATCH k | SET k 5 | MULTI | GET k | EXEC | WATCH k | MULTI | GET k | EXEC
        WATCH k | UNWATCH | SET k 6 | MULTI | GET k | EXEC | MULTI | WATCH k | DISCARD
        WATCH gone | DEL gone | MULTI | PING | EXEC | WATCH k | FLUSHALL | MULTI | PING | EXEC
        WATCH k | EXPIRE k 10 | MULTI | PING | EXEC | WATCH q | FLUSHALL | MULTI | PING | EXEC
        SADD s m | WATCH s | SADD s m | MULTI | PING | EXEC | WATCH s | SREM s zz | MULTI | PING
        EXEC | WATCH s | SREM s m | MULTI | PING | EXEC
    """,
    "errors": """
        NOSUCH | NOSUCH a b | nosuch ~ | GET | GET a b | SET a | PING a b | ECHO | CONFIG
        CONFIG GET save | CONFIG GET appendonly | CONFIG GET nothing | CONFIG GET | CONFIG NOPE x
        SCRIPT | SCRIPT NOPE | EVALSHA abc 0 | EVALSHA abc x | EVALSHA abc 2 k | EVALSHA abc -1
        EVALSHA abc | SCRIPT EXISTS abc | SCRIPT FLUSH | SCRIPT FLUSH foo | OBJECT | DBSIZE x
        TIME x | OBJECT NOPE k | TTL | EXPIRE | TYPE | CONFIG SET maxmemory
    """,
}


# What EVAL and EVAL_RO run.
LUA = """
return redis.call('incr', 'foo')
return redis.pcall('incr', 'foo')
~~return redis.call('incr', 'foo')
local function f() return redis.call('incr', 'foo') end~return f()
local _, e = pcall(redis.call, 'incr', 'foo') return e
local _, e = pcall(error, {err = 'MY words'}) return e
return {pcall(function(...) return ... end, 1, 2)}
return redis.call('nosuch', 'foo')
return redis.pcall('nosuch')
return redis.call('get')
return redis.pcall('get')
return redis.call()
return redis.pcall()
return redis.call({})
return redis.pcall({})
return redis.sha1hex()
return redis.sha1hex(1.5)
error('boom')
error({err='MY words'})
return redis.error_reply('MY words')
return {1, {err='MY words'}, {ok='fine'}, {double=1.5}, {2, {3}}, nil, 4}
return redis.call('subscribe', 'a')
return redis.call('blmove', 'a', 'b', 'left', 'left', 0)
return redis.call('blpop', 'a', 0)
return redis.call('xread', 'block', 0, 'streams', 's', '0')
return redis.call('xreadgroup', 'group', 'g', 'block', 'block', 0, 'streams', 's', '0')
return setmetatable({}, {__index = function() error('x') end})
return setmetatable({1, 2}, {__index = function() return redis.call('incr', 'x') end})
return _G
return _G._G.tostring(1)
_G.x = 1
rawset(redis, 'x', 1)
redis.call = nil
math.x = 1
return redis.call('set', 'a', 'b')
return redis.call('publish', 'a', 'b')
return redis.pcall('publish', 'a', 'b')
#!lua~return 1
#!lua flags=no-writes~return redis.call('get', 'foo')
#!lua flags=no-writes~~return redis.call('set', 'a', 'b')
#!lua flags=no-writes,allow-oom flags=allow-stale~return 1
#!lua flags=no-writes,allow-oom~foo(
#!lua flags=~return 1
#!lua flags=x~return 1
#!lua foo~return 1
#!lux~return 1
#!~return 1
#!lua
"""


# What `redis_kv` has of them.
SMALL = {
    "strings": """
        SET k v | GET k | get k | GET missing | SET k v NX | SET new v NX | SET k w XX
        SET none v XX | EXISTS none | GET k | SET k v EX 0 | SET k v EX -1 | SET k v PX x
        SET k v EX | SET k v EX 10 PX 10 | SET k v EX 10 EX 20 | TTL k | SET k v NX NX
        SET k v NX XX | SET k v bogus | SET k | SET | SET k v EX 100 | TTL k | SET k w | TTL k
        SET k v PX 100000 | TTL k | SET k v EX 9223372036854775807 | SET k v EX 9999999999999999
        INCR n | INCR n | INCRBY n 10 | INCRBY n -5 | GET n | INCR n x | SET n abc | INCR n
        SET n 1.5 | INCR n | INCRBY n | SET n 9223372036854775807 | INCR n | SET n 01 | INCR n
        INCRBY m 9223372036854775808 | INCRBY m x | INCRBY m +1 | INCRBY m 01 | INCRBY m ~
        SET n ~ | INCR n | GET n
    """,
    "keys": """
        SET k v | TTL k | TTL missing | EXPIRE k 100 | TTL k | EXPIRE missing 100 | EXPIRE k x
        EXPIRE k | EXPIRE k 9223372036854775807 | EXPIRE k 9223372036854775
        EXPIRE k -9223372036854775807 | EXPIRE k -1 | EXISTS k | SET k v EX 100 | INCR n
        EXPIRE n 100 | INCR n | TTL n | RPUSH l a | EXPIRE l 100 | RPUSH l b | TTL l | LPOP l
        LPOP l | RPUSH l c | TTL l | DEL n x l | DEL | EXISTS k k x | DBSIZE | KEYS k? | KEYS k
        KEYS | SELECT 1 | DBSIZE | SET only 1 | KEYS * | SELECT 0 | FLUSHALL | SELECT 1 | DBSIZE
    """,
    "hashes and lists": """
        HSET h a 1 b 2 | HSET h a 3 c 4 | HSET h a | HSET h a 1 b | HSET h | HGET h a | HGET h x
        HGET x a | HGETALL h | HGETALL x | HDEL h a x | HDEL h b c d | EXISTS h | RPUSH l a b c
        LPUSH l z y | LRANGE l 0 -1 | LRANGE l 1 2 | LRANGE l -2 -1 | LRANGE l 5 9 | LRANGE l 3 1
        LRANGE l -100 100 | LRANGE l 0 -100 | LRANGE x 0 -1 | LRANGE l x 1 | LLEN l | LLEN x
        LPOP l | RPOP l | LPOP x | RPUSH | LPUSH l | BLPOP l 0 | BLPOP x l 1 | BLPOP l x
        BLPOP l -1 | BLPOP l | BLPOP nil 0.01 | BLPOP nil nil2 0.01 | BLPOP l 0 | EXISTS l
        SET s v | LPUSH s a | LPOP s | LRANGE s 0 -1 | LLEN s | HGET s a | HGETALL s | HDEL s a
        HSET s a 1 | BLPOP s 0 | BLPOP nil s 0 | RPUSH w a | GET w | INCR w | SET w v EX 5
        MULTI | BLPOP nil 0 | RPUSH nil a | BLPOP nil 0 | EXEC
    """,
    "transactions": """
        MULTI | SET k 1 | INCR k | GET k | EXEC | EXEC | DISCARD | MULTI | MULTI | DISCARD
        MULTI | INCR | SET k 2 | EXEC | MULTI | NOSUCH | EXEC | MULTI | SET k abc | INCR k
        GET k | EXEC | WATCH k | SET k 5 | MULTI | GET k | EXEC | WATCH k | MULTI | GET k | EXEC
        WATCH k | UNWATCH | SET k 6 | MULTI | GET k | EXEC | MULTI | WATCH k | DISCARD
        WATCH gone | DEL gone | MULTI | PING | EXEC | WATCH k | FLUSHALL | MULTI | PING | EXEC
        SET k v | WATCH k | EXPIRE k 10 | MULTI | PING | EXEC | WATCH q | FLUSHALL | MULTI | PING
        EXEC | RPUSH l a | WATCH l | LPOP l | MULTI | PING | EXEC | HSET h f v | WATCH h
        HDEL h none | MULTI | PING | EXEC | WATCH h | HDEL h f | MULTI | PING | EXEC
    """,
}

CASES = [
    *(("redis_full", name) for name in SCRIPTS),
    *(("redis_kv", name) for name in SMALL),
]


def _split(script: str) -> list[bytes]:
    lines = [line.split() for line in re.split(r"[|\n]", script)]
    return [packed(*(word.replace("~", "") for word in line)) for line in lines if line]


def _commands(store: str, name: str) -> list[bytes]:
    return _split((SCRIPTS if store == "redis_full" else SMALL)[name])


@pytest.fixture
def pair(redis_port: int, store: str) -> Iterator[tuple[Wire, Wire]]:
    """Connections to an example and to Redis; both are empty."""
    with example(store) as port, Wire(port) as ours, Wire(redis_port) as theirs:
        assert theirs.ask(packed("FLUSHALL")) == b"+OK\r\n"
        yield ours, theirs


def _compare(pair: tuple[Wire, Wire], commands: list[bytes]) -> None:
    ours, theirs = pair
    different = []
    for command in commands:
        got, expected = ours.ask(command), theirs.ask(command)
        if got != expected:
            different.append((command, got, expected))
    assert not different


@pytest.mark.parametrize(("store", "name"), CASES)
def test_each_command(pair: tuple[Wire, Wire], store: str, name: str) -> None:
    _compare(pair, _commands(store, name))


@pytest.mark.parametrize(("store", "name"), CASES)
def test_in_one_piece(pair: tuple[Wire, Wire], store: str, name: str) -> None:
    ours, theirs = pair
    commands = _commands(store, name)
    data = b"".join(commands)
    expected = theirs.ask(data, len(commands))
    assert ours.ask(data, len(commands)) == expected


@pytest.mark.parametrize(("store", "name"), CASES)
def test_byte_by_byte(pair: tuple[Wire, Wire], store: str, name: str) -> None:
    ours, theirs = pair
    commands = _commands(store, name)
    expected = theirs.ask(b"".join(commands), len(commands))
    data = b"".join(commands)
    for i in range(len(data)):
        ours.sock.sendall(data[i : i + 1])
    assert ours.answer(len(commands)) == expected


@pytest.mark.parametrize("store", ["redis_full"])
def test_scripts(pair: tuple[Wire, Wire], store: str) -> None:
    commands = [packed("SET", "foo", "abc"), packed("EVALSHA_RO", "abc", "0")]
    for line in LUA.splitlines()[1:]:
        script = line.replace("~", "\n")
        digest = hashlib.sha1(script.encode()).hexdigest()
        commands += [packed(name, script, "0") for name in ("EVAL", "EVAL_RO")]
        commands += [packed(name, digest, "0") for name in ("EVALSHA", "EVALSHA_RO")]
        commands += [packed("SCRIPT", "LOAD", script), packed("SCRIPT", "EXISTS", digest)]
    _compare(pair, commands)


@pytest.mark.parametrize("store", ["redis_full"])
def test_resp3(pair: tuple[Wire, Wire], store: str) -> None:
    for wire in pair:
        assert wire.ask(packed("HELLO", "3")).startswith(b"%7\r\n")
    lines = """
        HSET h f v | HGETALL h | HGETALL x | SADD s m | SMEMBERS s | SMEMBERS x | SPOP s 1
        SADD s m | SINTER s s | SPOP x | SPOP x 1 | ZADD z 1.5 a 2 b | ZSCORE z a | ZSCORE z x
        ZMSCORE z a x | ZRANGE z 0 -1 WITHSCORES | ZPOPMIN z | ZADD z 1.5 a | ZPOPMIN z 2
        ZPOPMAX x | ZPOPMAX x 1 | ZADD z INCR 1.5 q | ZINCRBY z 1 q | ZADD z XX INCR 1 none
        GET x | LPOP x | LPOP x 2 | BLPOP x 0.01 | CONFIG GET save | MULTI | HGETALL h | GET x
        EXEC | WATCH h | HSET h g w | MULTI | PING | EXEC | ZRANGEBYSCORE z 0 9 WITHSCORES
        INCRBYFLOAT f 1.5 | HINCRBYFLOAT h n 1.5 | SCAN 0 MATCH q | HSCAN h 0 MATCH f
        ZSCAN z 0 | SRANDMEMBER s 1 | ZRANK z none | SMISMEMBER s m x | BLMOVE x y LEFT LEFT 0.01
    """
    _compare(pair, _split(lines))


@pytest.mark.parametrize("store", ["redis_kv"])
def test_resp3_of_the_small_store(pair: tuple[Wire, Wire], store: str) -> None:
    for wire in pair:
        assert wire.ask(packed("HELLO", "3")).startswith(b"%7\r\n")
    lines = """
        HSET h f v | HGETALL h | HGETALL x | GET x | LPOP x | BLPOP x 0.01 | MULTI | HGETALL h
        GET x | EXEC | WATCH h | HSET h g w | MULTI | PING | EXEC | RPUSH l a | BLPOP l 0
    """
    _compare(pair, _split(lines))
