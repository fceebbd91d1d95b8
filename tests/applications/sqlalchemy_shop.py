"""As shop.rb, with SQLAlchemy."""
import os
import sys

import ksync
import sqlalchemy
from sqlalchemy import orm


class Base(orm.DeclarativeBase):
    pass


class Product(Base):
    __tablename__, __ksync_topic__ = "products", os.environ["TOPIC"]
    id = orm.mapped_column(sqlalchemy.Integer, primary_key=True)
    price = orm.mapped_column(sqlalchemy.Integer)
    updated_at = orm.mapped_column(sqlalchemy.DateTime)


engine = sqlalchemy.create_engine(os.environ["DATABASE_URL"].replace("postgres:", "postgresql+psycopg:"))
Session = orm.sessionmaker(engine)
ksync.announce(Session)


def perform(command, id, price=None, *more):
    with Session.begin() as session:
        if command == "create":
            session.add(Product(id=id, price=price))
        elif command == "update":
            session.get(Product, id).price = price
        elif command == "touch":
            session.get(Product, id).updated_at = sqlalchemy.func.now()
        elif command == "destroy":
            session.delete(session.get(Product, id))
        elif command == "twice":
            for price in range(2):
                session.get(Product, id).price = price
                session.flush()
        elif command == "both":
            for each in id, price:
                session.get(Product, each).price = 3
                session.flush()  # one after the other
        elif command == "long":  # the client takes a delay message for old after a second of these
            ksync.FRESH_SECS = 1
            session.get(Product, id).price = price
            session.flush()
            session.execute(sqlalchemy.select(sqlalchemy.func.pg_sleep(*more)))
        elif command == "rollback":
            session.get(Product, id).price = price
            session.flush()
            session.rollback()
        elif command == "bulk":
            chosen = Product.id.in_([id, price, *more])
            with ksync.bulk(session.scalars(sqlalchemy.select(Product).where(chosen).order_by(Product.id)), session):
                session.execute(sqlalchemy.update(Product).where(chosen).values(price=7))


if __name__ == "__main__":
    print("ready", file=sys.stderr, flush=True)
    for line in map(str.rstrip, sys.stdin):
        command, *numbers = line.split()
        try:
            perform(command, *map(int, numbers))
            print(f"did {line}", file=sys.stderr, flush=True)
        except Exception as error:
            print(f"failed {line}: {error}", file=sys.stderr, flush=True)
